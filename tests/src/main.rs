//! The outrigger command under test.
fn main() {}
