//! Says who we are to a peer sidecar, with the first request of a connection (`introduction`).

use super::context::RequestCtx;
use crate::introduction::HEADER;

/// Says who we are with a request that is the first on its connection to a peer sidecar, and only then.
pub fn ourselves(ctx: &mut RequestCtx<'_>, first_to_peer: bool) {
    if !first_to_peer {
        // An attempt before this one may have said it, on a connection of its own.
        if std::mem::take(&mut ctx.introduced) {
            ctx.head.remove(HEADER);
        }
        return;
    }
    if let Some(text) = ctx.conn.worker.metrics.introduction() {
        // A head without room goes on without it.
        ctx.introduced = ctx.head.set(HEADER, text.as_bytes()).is_ok();
    }
}
