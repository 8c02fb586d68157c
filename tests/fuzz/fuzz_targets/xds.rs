#![no_main]
//! Resources on the wire: see `outrigger_xds::fuzzing`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| outrigger_xds::fuzzing::fuzz_decode(data));
