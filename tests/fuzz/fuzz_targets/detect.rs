#![no_main]
//! The first bytes of a connection, cut anywhere: see `outrigger_proxy::detect::fuzzing`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| outrigger_proxy::detect::fuzzing::fuzz_detect(data));
