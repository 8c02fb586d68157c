//! Takes a token for a request where another control plane wants that, and does with it what is wanted then.

use outrigger_model::route::table::CompiledRoute;

use crate::failure::Failure;
use crate::http::context::RequestCtx;
use crate::http::filter::local_limit::{Limits, Look};
use crate::http::written;

/// What no route takes is counted as well, but has no headers: they may name the route.
pub(super) fn look(
    ctx: &mut RequestCtx<'_>,
    limits: &Limits,
    route: Option<&CompiledRoute>,
) -> Result<(), Failure> {
    match (limits.look(route.map(|route| route.id)), route) {
        (Look::Over(limit), Some(route)) => {
            written::passed(ctx, route, &limit.request_headers);
            Ok(())
        }
        (Look::Passes | Look::Over(_), _) => Ok(()),
        (Look::Refused(limit, failure), route) => {
            if let Some(route) = route {
                written::refused(ctx, route, &limit.response_headers, &failure);
            }
            Err(failure)
        }
    }
}
