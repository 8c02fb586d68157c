#![no_main]
//! TLS records, rightly sealed and not: see `outrigger_proxy::stream::fuzz_records`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| outrigger_proxy::stream::fuzz_records(data));
