//! Active health checks of a cluster's endpoints. Of several the first holds.

use outrigger_model::cluster::{CHECK_METHODS, CheckHow, GrpcCheck, HealthCheck, HttpCheck, TcpCheck};

use super::flaw::{Decoded, Under, each, flaw};
use super::value::{duration_or, positive_or, uint_or};
use super::{left_out, note};
use crate::wire::core::health_check::payload::Payload as Bytes;
use crate::wire::core::health_check::{
    GrpcHealthCheck, HealthChecker, HttpHealthCheck, Payload, TcpHealthCheck,
};
use crate::wire::core::{self, RequestMethod};
use crate::wire::scalar::{CodecClientType, Int64Range};
use crate::wire::{duration, uint};

pub(super) fn encode(model: &HealthCheck) -> core::HealthCheck {
    let jitter = |time: std::time::Duration| (!time.is_zero()).then(|| duration(time));
    core::HealthCheck {
        timeout: Some(duration(model.timeout)),
        interval: Some(duration(model.interval)),
        initial_jitter: jitter(model.initial_jitter),
        interval_jitter: jitter(model.interval_jitter),
        interval_jitter_percent: model.interval_jitter_percent,
        unhealthy_threshold: uint(model.unhealthy_threshold),
        healthy_threshold: uint(model.healthy_threshold),
        no_traffic_interval: Some(duration(model.no_traffic_interval)),
        health_checker: Some(match &model.how {
            CheckHow::Http(http) => HealthChecker::HttpHealthCheck(encode_http(http)),
            CheckHow::Tcp(tcp) => HealthChecker::TcpHealthCheck(TcpHealthCheck {
                send: (!tcp.send.is_empty()).then(|| encode_bytes(&tcp.send)),
                receive: tcp.receive.iter().map(|bytes| encode_bytes(bytes)).collect(),
                ..Default::default()
            }),
            CheckHow::Grpc(grpc) => HealthChecker::GrpcHealthCheck(GrpcHealthCheck {
                service_name: grpc.service.clone(),
                authority: grpc.authority.clone(),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

fn encode_http(http: &HttpCheck) -> HttpHealthCheck {
    let codec = if http.http2 { CodecClientType::Http2 } else { CodecClientType::Http1 };
    HttpHealthCheck {
        host: http.host.clone(),
        path: http.path.clone(),
        expected_statuses: encode_statuses(&http.expected),
        retriable_statuses: encode_statuses(&http.retriable),
        codec_client_type: codec as i32,
        method: RequestMethod::from_str_name(&http.method).unwrap_or(RequestMethod::Get) as i32,
        ..Default::default()
    }
}

/// The end of a range on the wire is the first that is not in it.
fn encode_statuses(ranges: &[(u16, u16)]) -> Vec<Int64Range> {
    let range = |(from, to): &(u16, u16)| Int64Range { start: i64::from(*from), end: i64::from(*to) + 1 };
    ranges.iter().map(range).collect()
}

/// In hexadecimal, which every version of Envoy reads.
fn encode_bytes(bytes: &[u8]) -> Payload {
    Payload { payload: Some(Bytes::Text(bytes.iter().map(|byte| format!("{byte:02x}")).collect())) }
}

pub(super) fn decode(wire: &[core::HealthCheck]) -> Decoded<Option<Box<HealthCheck>>> {
    let [first, others @ ..] = wire else { return Ok(None) };
    if !others.is_empty() {
        left_out("health_checks[1]");
    }
    let check = decode_one(first).under("health_checks[0]")?;
    if let Some(check) = &check
        && let Err((field, reason)) = check.check()
    {
        return flaw(format_args!("health_checks[0].{field}"), reason);
    }
    Ok(check.map(Box::new))
}

fn decode_one(wire: &core::HealthCheck) -> Decoded<Option<HealthCheck>> {
    note!(
        wire,
        reuse_connection,
        no_traffic_healthy_interval,
        unhealthy_interval,
        unhealthy_edge_interval,
        healthy_edge_interval,
        event_logger,
        event_service,
        tls_options,
        transport_socket_match_criteria,
        alt_port,
        event_log_path,
    );
    let how = match &wire.health_checker {
        Some(HealthChecker::HttpHealthCheck(http)) => {
            CheckHow::Http(decode_http(http).under("http_health_check")?)
        }
        Some(HealthChecker::TcpHealthCheck(tcp)) => CheckHow::Tcp(decode_tcp(tcp).under("tcp_health_check")?),
        Some(HealthChecker::GrpcHealthCheck(grpc)) => {
            note!(grpc, initial_metadata);
            CheckHow::Grpc(GrpcCheck {
                service: grpc.service_name.clone(),
                authority: grpc.authority.clone(),
            })
        }
        Some(HealthChecker::CustomHealthCheck(_)) => {
            left_out("health_checks.custom_health_check");
            return Ok(None);
        }
        None => return flaw("health_checker", "is required"),
    };
    let default = HealthCheck::new(how);
    let time = |wire: &Option<crate::wire::protobuf::Duration>, field: &str| match wire {
        Some(_) => positive_or(wire.as_ref(), default.interval, field),
        None => flaw(field, "is required"),
    };
    let threshold = |wire: &Option<crate::wire::protobuf::UInt32Value>, field: &str| match wire {
        Some(_) => Ok(uint_or(wire.as_ref(), 1).max(1)),
        None => flaw(field, "is required"),
    };
    let jitter = |wire: &Option<crate::wire::protobuf::Duration>, field: &str| {
        duration_or(wire.as_ref(), std::time::Duration::ZERO, field)
    };
    Ok(Some(HealthCheck {
        timeout: time(&wire.timeout, "timeout")?,
        interval: time(&wire.interval, "interval")?,
        initial_jitter: jitter(&wire.initial_jitter, "initial_jitter")?,
        interval_jitter: jitter(&wire.interval_jitter, "interval_jitter")?,
        interval_jitter_percent: wire.interval_jitter_percent,
        unhealthy_threshold: threshold(&wire.unhealthy_threshold, "unhealthy_threshold")?,
        healthy_threshold: threshold(&wire.healthy_threshold, "healthy_threshold")?,
        no_traffic_interval: positive_or(
            wire.no_traffic_interval.as_ref(),
            default.no_traffic_interval,
            "no_traffic_interval",
        )?,
        how: default.how,
    }))
}

fn decode_http(wire: &HttpHealthCheck) -> Decoded<HttpCheck> {
    note!(
        wire,
        send,
        receive,
        response_buffer_size,
        request_headers_to_add,
        request_headers_to_remove,
        service_name_matcher,
    );
    let method = match RequestMethod::try_from(wire.method) {
        Ok(RequestMethod::MethodUnspecified) => CHECK_METHODS[0],
        Ok(method) => method.as_str_name(),
        Err(_) => return flaw("method", "is unknown"),
    };
    Ok(HttpCheck {
        host: wire.host.clone(),
        path: wire.path.clone(),
        method: method.to_owned(),
        http2: match CodecClientType::try_from(wire.codec_client_type) {
            Ok(CodecClientType::Http1) => false,
            Ok(CodecClientType::Http2) => true,
            _ => return flaw("codec_client_type", "HTTP/3 is not supported"),
        },
        expected: each(&wire.expected_statuses, "expected_statuses", statuses)?,
        retriable: each(&wire.retriable_statuses, "retriable_statuses", statuses)?,
    })
}

/// As in Envoy: from 100, up to 600.
fn statuses(wire: &Int64Range) -> Decoded<(u16, u16)> {
    match (u16::try_from(wire.start), u16::try_from(wire.end)) {
        (Ok(start), Ok(end)) if start >= 100 && start < end && end <= 600 => Ok((start, end - 1)),
        _ => flaw("", format!("{} up to {} is no range of statuses", wire.start, wire.end)),
    }
}

fn decode_tcp(wire: &TcpHealthCheck) -> Decoded<TcpCheck> {
    note!(wire, proxy_protocol_config);
    Ok(TcpCheck {
        send: wire.send.as_ref().map_or(Ok(Vec::new()), decode_bytes).under("send")?,
        receive: each(&wire.receive, "receive", decode_bytes)?,
    })
}

fn decode_bytes(wire: &Payload) -> Decoded<Vec<u8>> {
    let text = match &wire.payload {
        Some(Bytes::Binary(bytes)) if !bytes.is_empty() => return Ok(bytes.clone()),
        Some(Bytes::Text(text)) if !text.is_empty() => text.as_bytes(),
        _ => return flaw("payload", "must not be empty"),
    };
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let byte = |pair: &[u8]| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    };
    let bytes: Option<Vec<u8>> = text.chunks(2).map(byte).collect();
    bytes.map_or_else(|| flaw("text", "must be bytes in hexadecimal"), Ok)
}
