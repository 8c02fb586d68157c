#![no_main]
//! DNS messages, of clients and of upstreams: see `outrigger_proxy::dns::fuzzing`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| outrigger_proxy::dns::fuzzing::fuzz_dns(data));
