//! Takes a token for a request where another control plane wants that, and does with it what is wanted then.

use outrigger_model::route::table::CompiledRoute;

use crate::failure::Failure;
use crate::http::context::RequestCtx;
use crate::http::filter::local_limit::{Limits, Look};
use crate::http::written;

pub(super) fn look(ctx: &mut RequestCtx<'_>, limits: &Limits, route: &CompiledRoute) -> Result<(), Failure> {
    match limits.look(route.id) {
        Look::Passes => Ok(()),
        Look::Over(limit) => {
            written::passed(ctx, route, &limit.request_headers);
            Ok(())
        }
        Look::Refused(limit, failure) => {
            written::refused(ctx, route, &limit.response_headers, &failure);
            Err(failure)
        }
    }
}
