//! The messages of `envoy.service.auth.v3.Authorization/Check`, for a sidecar that asks.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use outrigger_model::ext_authz::{Edit, How};
use prost::Message;

use crate::wire::auth::attribute_context::{HttpRequest, Peer, Request};
use crate::wire::auth::check_response::HttpResponse;
use crate::wire::auth::{AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse};
use crate::wire::core::{
    self, Address, HeaderValueOption, address::Address as AddressKind,
    header_value_option::HeaderAppendAction, socket_address::PortSpecifier,
};
use crate::wire::protobuf;
use crate::wire::scalar::HttpStatus;

/// What is asked.
#[derive(Debug)]
pub struct Check<'c> {
    pub source: (SocketAddr, &'c str),
    pub destination: (SocketAddr, &'c str),
    pub id: &'c str,
    pub method: &'c str,
    pub path: &'c str,
    pub host: &'c str,
    pub scheme: &'c str,
    pub protocol: &'c str,
    /// Lower-case names, once each.
    pub headers: HashMap<String, String>,
    /// Of the body; -1 if it is not known.
    pub size: i64,
    pub body: &'c [u8],
    pub as_bytes: bool,
    /// Told besides.
    pub context: Option<&'c BTreeMap<String, String>>,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Allowed { request: Vec<Edit>, remove: Vec<String>, response: Vec<Edit> },
    Denied { status: u16, headers: Vec<Edit>, body: String },
}

impl Check<'_> {
    /// The message of the call.
    pub fn encode(&self) -> Vec<u8> {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let mut http = HttpRequest {
            id: self.id.to_owned(),
            method: self.method.to_owned(),
            headers: self.headers.clone(),
            path: self.path.to_owned(),
            host: self.host.to_owned(),
            scheme: self.scheme.to_owned(),
            size: self.size,
            protocol: self.protocol.to_owned(),
            ..Default::default()
        };
        match self.as_bytes {
            true => http.raw_body = self.body.to_vec(),
            false => http.body = String::from_utf8_lossy(self.body).into_owned(),
        }
        let time = protobuf::Timestamp {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
        };
        let attributes = AttributeContext {
            source: Some(peer(self.source)),
            destination: Some(peer(self.destination)),
            request: Some(Request { time: Some(time), http: Some(http) }),
            context_extensions: self
                .context
                .into_iter()
                .flatten()
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect(),
            ..Default::default()
        };
        CheckRequest { attributes: Some(attributes) }.encode_to_vec()
    }
}

fn peer((address, principal): (SocketAddr, &str)) -> Peer {
    let socket = core::SocketAddress {
        address: address.ip().to_string(),
        port_specifier: Some(PortSpecifier::PortValue(u32::from(address.port()))),
        ..Default::default()
    };
    Peer {
        address: Some(Address { address: Some(AddressKind::SocketAddress(socket)) }),
        principal: principal.to_owned(),
        ..Default::default()
    }
}

/// Reads an answer.
///
/// # Errors
/// It is none.
pub fn decode(message: &[u8]) -> Result<Verdict, String> {
    let response = CheckResponse::decode(message).map_err(|error| error.to_string())?;
    let code = response.status.map_or(0, |status| status.code);
    match response.http_response {
        Some(HttpResponse::ErrorResponse(_)) => Err("the service says that it failed".into()),
        // Taken for unsaid, a parameter that has to go would stay; and that nobody answered is not what this is.
        Some(HttpResponse::OkResponse(ok))
            if code == 0
                && !(ok.query_parameters_to_set.is_empty() && ok.query_parameters_to_remove.is_empty()) =>
        {
            let body = "the service that authorizes edits query parameters, which is not supported";
            let status = Some(HttpStatus { code: 500 });
            Ok(denial(DeniedHttpResponse { status, body: body.into(), ..Default::default() }))
        }
        Some(HttpResponse::OkResponse(ok)) if code == 0 => Ok(Verdict::Allowed {
            request: edits(&ok.headers, plain),
            remove: ok.headers_to_remove,
            response: edits(&ok.response_headers_to_add, wanted),
        }),
        None if code == 0 => {
            Ok(Verdict::Allowed { request: Vec::new(), remove: Vec::new(), response: Vec::new() })
        }
        Some(HttpResponse::DeniedResponse(denied)) => Ok(denial(denied)),
        _ => Ok(denial(DeniedHttpResponse::default())),
    }
}

fn denial(denied: DeniedHttpResponse) -> Verdict {
    let status = denied.status.and_then(|status| u16::try_from(status.code).ok());
    let status = status.filter(|status| (200..=599).contains(status)).unwrap_or(403);
    Verdict::Denied { status, headers: edits(&denied.headers, plain), body: denied.body }
}

fn edits(wire: &[HeaderValueOption], how: fn(&HeaderValueOption) -> How) -> Vec<Edit> {
    let edit = |option: &HeaderValueOption| {
        let header = option.header.as_ref()?;
        let value = match header.raw_value.is_empty() {
            true => header.value.clone().into_bytes(),
            false => header.raw_value.to_vec(),
        };
        Some(Edit { name: header.key.to_ascii_lowercase(), value, how: how(option) })
    };
    wire.iter().filter_map(edit).collect()
}

/// Of a request, and of a denial: the older field, by default to set.
#[allow(deprecated)] // what Envoy reads here
fn plain(option: &HeaderValueOption) -> How {
    if option.append.is_some_and(|append| append.value) { How::Append } else { How::Set }
}

/// Of the response to what is allowed: the older field where it is given, else the newer, by default to add.
#[allow(deprecated)] // Envoy reads both
fn wanted(option: &HeaderValueOption) -> How {
    match option.append {
        Some(append) if append.value => How::Append,
        Some(_) => How::Set,
        None => match option.append_action() {
            HeaderAppendAction::AppendIfExistsOrAdd => How::Append,
            HeaderAppendAction::AddIfAbsent => How::IfAbsent,
            HeaderAppendAction::OverwriteIfExistsOrAdd => How::Set,
            HeaderAppendAction::OverwriteIfExists => How::IfPresent,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::auth::OkHttpResponse;

    #[test]
    fn answers_mean_what_envoy_takes_them_for() {
        let allowed = |request, remove| Verdict::Allowed { request, remove, response: Vec::new() };
        let decoded = |response: CheckResponse| decode(&response.encode_to_vec()).unwrap();
        assert_eq!(decoded(CheckResponse::default()), allowed(vec![], vec![]));
        let header = core::HeaderValue { key: "X-User".into(), value: "ann".into(), ..Default::default() };
        let option = HeaderValueOption { header: Some(header), ..Default::default() };
        let ok = OkHttpResponse {
            headers: vec![option.clone()],
            headers_to_remove: vec!["x-secret".into()],
            ..Default::default()
        };
        let response =
            CheckResponse { http_response: Some(HttpResponse::OkResponse(ok)), ..Default::default() };
        let edit = Edit { name: "x-user".into(), value: "ann".into(), how: How::Set };
        assert_eq!(decoded(response.clone()), allowed(vec![edit.clone()], vec!["x-secret".into()]));
        let refused = crate::wire::rpc::Status { code: 7, ..Default::default() };
        let contrary = CheckResponse { status: Some(refused), ..response };
        assert!(matches!(decoded(contrary), Verdict::Denied { status: 403, .. }));
        let denied = DeniedHttpResponse {
            status: Some(HttpStatus { code: 401 }),
            headers: vec![option],
            body: "who are you?".into(),
        };
        let response =
            CheckResponse { http_response: Some(HttpResponse::DeniedResponse(denied)), ..Default::default() };
        let denied = Verdict::Denied { status: 401, headers: vec![edit], body: "who are you?".into() };
        assert_eq!(decoded(response), denied);
        assert!(decode(b"\xff\xff").is_err());
    }

    #[test]
    fn what_is_for_the_response_is_added_unless_the_service_says_otherwise() {
        let header =
            core::HeaderValue { key: "Set-Cookie".into(), value: "a=1".into(), ..Default::default() };
        let option = |action: HeaderAppendAction| HeaderValueOption {
            header: Some(header.clone()),
            append_action: action as i32,
            ..Default::default()
        };
        let all = [
            (HeaderAppendAction::AppendIfExistsOrAdd, How::Append),
            (HeaderAppendAction::AddIfAbsent, How::IfAbsent),
            (HeaderAppendAction::OverwriteIfExistsOrAdd, How::Set),
            (HeaderAppendAction::OverwriteIfExists, How::IfPresent),
        ];
        for (action, how) in all {
            let ok = OkHttpResponse { response_headers_to_add: vec![option(action)], ..Default::default() };
            let response =
                CheckResponse { http_response: Some(HttpResponse::OkResponse(ok)), ..Default::default() };
            let Ok(Verdict::Allowed { response, .. }) = decode(&response.encode_to_vec()) else { panic!() };
            assert_eq!(response[0].how, how);
        }
        let ok = OkHttpResponse { query_parameters_to_remove: vec!["token".into()], ..Default::default() };
        let response =
            CheckResponse { http_response: Some(HttpResponse::OkResponse(ok)), ..Default::default() };
        let passed = decode(&response.encode_to_vec());
        assert!(
            matches!(passed, Ok(Verdict::Denied { status: 500, .. })),
            "whatever is to happen when nobody answers"
        );
        let status = Some(crate::wire::rpc::Status { code: 7, ..Default::default() });
        let refused = decode(&CheckResponse { status, ..response }.encode_to_vec());
        assert!(matches!(refused, Ok(Verdict::Denied { status: 403, .. })), "a refusal is one");
    }
}
