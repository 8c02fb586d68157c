//! What survives the wire, what is refused and where, and what each kind of client is sent.

use super::*;

mod balancing;
mod clients;
mod refused;
mod round_trip;
pub(crate) mod sample;
