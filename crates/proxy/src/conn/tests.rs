//! Connections over loopback sockets, from accept to the application.

mod cut;
mod ends;
mod mesh;
mod outside;
mod policy;
mod revoked;
mod rig;
mod slips;
mod speakers;
mod tunnel;
