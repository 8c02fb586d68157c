//! What of etcd's API is called, as `build.rs` made it from its own descriptions.

/// Keys, watches, leases, users.
pub(super) mod etcdserverpb {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::pedantic,
        unused_qualifications,
        rustdoc::all
    )]
    tonic::include_proto!("etcdserverpb");
}

/// A key and its value.
pub(super) mod mvccpb {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::pedantic,
        unused_qualifications,
        rustdoc::all
    )]
    tonic::include_proto!("mvccpb");
}
