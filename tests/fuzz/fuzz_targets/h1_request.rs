#![no_main]
//! HTTP/1: see `outrigger_proxy::http::h1::fuzzing`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| outrigger_proxy::http::h1::fuzzing::fuzz_request(data));
