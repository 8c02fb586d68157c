//! The messages of `envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit`, for a sidecar that asks.

use std::time::Duration;

use prost::Message;

use crate::wire::core::HeaderValue;
use crate::wire::limits::rate_limit_response::{Code, DescriptorStatus};
use crate::wire::limits::{RateLimitDescriptor, RateLimitRequest, RateLimitResponse, rate_limit_descriptor};

/// Keys and values.
pub type Descriptor<'d> = Vec<(&'d str, String)>;

/// What is answered.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// There is no room.
    pub over: Option<Over>,
    /// Headers for the request; each is added.
    pub request: Vec<(String, Vec<u8>)>,
    /// Headers for the response, whoever makes it; each is added.
    pub response: Vec<(String, Vec<u8>)>,
}

/// A limit that has no room.
#[derive(Debug, PartialEq, Eq)]
pub struct Over {
    /// Which question's it is, by its place.
    pub which: usize,
    /// So many pass in its time; 0 where the service does not say.
    pub requests: u32,
    /// Until it begins anew, if that is said.
    pub wait: Option<Duration>,
}

/// The message of a call.
pub fn encode(domain: &str, descriptors: &[Descriptor<'_>]) -> Vec<u8> {
    let entry = |(key, value): &(&str, String)| rate_limit_descriptor::Entry {
        key: (*key).to_owned(),
        value: value.clone(),
    };
    let descriptor = |entries: &Descriptor<'_>| RateLimitDescriptor {
        entries: entries.iter().map(entry).collect(),
        ..Default::default()
    };
    let descriptors = descriptors.iter().map(descriptor).collect();
    RateLimitRequest { domain: domain.to_owned(), descriptors, hits_addend: 1 }.encode_to_vec()
}

/// Reads an answer.
///
/// # Errors
/// It is none.
pub fn decode(message: &[u8]) -> Result<Answer, String> {
    let response = RateLimitResponse::decode(message).map_err(|error| error.to_string())?;
    let is_over = response.overall_code() == Code::OverLimit;
    Ok(Answer {
        over: is_over.then(|| over(&response.statuses)),
        request: headers(&response.request_headers_to_add),
        response: headers(&response.response_headers_to_add),
    })
}

/// Of those without room the one that one waits for the longest.
fn over(statuses: &[DescriptorStatus]) -> Over {
    let wait = |status: &DescriptorStatus| {
        let until = status.duration_until_reset.as_ref()?;
        Some(Duration::new(
            u64::try_from(until.seconds).ok()?,
            u32::try_from(until.nanos).ok()?.min(999_999_999),
        ))
    };
    let full = statuses.iter().enumerate().filter(|(_, status)| status.code() == Code::OverLimit);
    let longest = full.max_by_key(|(_, status)| wait(status));
    longest.map_or(Over { which: 0, requests: 0, wait: None }, |(which, status)| Over {
        which,
        requests: status.current_limit.as_ref().map_or(0, |limit| limit.requests_per_unit),
        wait: wait(status),
    })
}

fn headers(wire: &[HeaderValue]) -> Vec<(String, Vec<u8>)> {
    let header = |header: &HeaderValue| {
        let value = match header.raw_value.is_empty() {
            true => header.value.clone().into_bytes(),
            false => header.raw_value.to_vec(),
        };
        (header.key.to_ascii_lowercase(), value)
    };
    wire.iter().map(header).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::limits::rate_limit_response::RateLimit;
    use crate::wire::protobuf;

    #[test]
    fn a_question_has_each_descriptor_and_counts_one() {
        let bytes =
            encode("shop", &[vec![("path", "/a".into()), ("user", "ann".into())], vec![("k", "v".into())]]);
        let request = RateLimitRequest::decode(bytes.as_slice()).unwrap();
        assert_eq!((&*request.domain, request.hits_addend, request.descriptors.len()), ("shop", 1, 2));
        let entries = &request.descriptors[0].entries;
        assert_eq!((&*entries[1].key, &*entries[1].value), ("user", "ann"));
    }

    #[test]
    fn an_answer_says_who_waits_and_how_long_and_what_is_added() {
        let status = |code: Code, requests, seconds| DescriptorStatus {
            code: code as i32,
            current_limit: Some(RateLimit { requests_per_unit: requests, ..Default::default() }),
            duration_until_reset: Some(protobuf::Duration { seconds, nanos: 0 }),
            ..Default::default()
        };
        let header = HeaderValue { key: "X-Left".into(), value: "3".into(), ..Default::default() };
        let response = RateLimitResponse {
            overall_code: Code::OverLimit as i32,
            statuses: vec![
                status(Code::Ok, 9, 90),
                status(Code::OverLimit, 5, 20),
                status(Code::OverLimit, 7, 30),
            ],
            response_headers_to_add: vec![header.clone()],
            request_headers_to_add: vec![header],
            ..Default::default()
        };
        let left = vec![("x-left".to_owned(), b"3".to_vec())];
        let over = Over { which: 2, requests: 7, wait: Some(Duration::from_secs(30)) };
        let wanted = Answer { over: Some(over), request: left.clone(), response: left };
        assert_eq!(decode(&response.encode_to_vec()), Ok(wanted));
        let silent = RateLimitResponse { overall_code: Code::OverLimit as i32, ..Default::default() };
        let over = decode(&silent.encode_to_vec()).unwrap().over;
        assert_eq!(over, Some(Over { which: 0, requests: 0, wait: None }));
        assert_eq!(decode(&RateLimitResponse::default().encode_to_vec()), Ok(Answer::default()));
        let odd = DescriptorStatus {
            code: Code::OverLimit as i32,
            duration_until_reset: Some(protobuf::Duration { seconds: -1, nanos: -1 }),
            ..Default::default()
        };
        let odd = RateLimitResponse { statuses: vec![odd], ..silent };
        assert_eq!(decode(&odd.encode_to_vec()).unwrap().over.unwrap().wait, None);
        assert!(decode(b"\xff\xff").is_err());
    }
}
