//! Connections over loopback sockets, from accept to the application.

mod mesh;
mod outside;
mod policy;
mod rig;
mod tunnel;
mod slips;
mod speakers;
