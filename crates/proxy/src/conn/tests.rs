//! Connections over loopback sockets, from accept to the application.

mod mesh;
mod policy;
mod rig;
mod tunnel;
