#![no_main]
//! Tokens of requests: see `outrigger_model::fuzzing`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| outrigger_model::fuzzing::fuzz_token(data));
