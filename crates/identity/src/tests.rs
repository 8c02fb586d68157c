//! The crate's parts together: handshakes, refusals, rotation, the authority, enrolment over the wire, garbage.

mod authority;
mod enrolment;
mod files;
mod garbage;
mod handshake;
mod refusals;
mod revocation;
