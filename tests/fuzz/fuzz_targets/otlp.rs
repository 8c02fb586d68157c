#![no_main]
//! OTLP messages: see `outrigger_control::fuzzing`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| outrigger_control::fuzzing::fuzz_otlp(data));
