#![no_main]
//! What users write: see `outrigger_rules::fuzzing`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| outrigger_rules::fuzzing::fuzz_rules(data));
