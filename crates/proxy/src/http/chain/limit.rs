//! Asks a service whether there is room for a request. The client is watched meanwhile.

use outrigger_model::ext_authz::How;

use super::Stop;
use crate::failure::{Failure, FailureKind, Stage};
use crate::http::call;
use crate::http::conn::RequestConfig;
use crate::http::context::RequestCtx;
use crate::http::filter::ResponseEdit;
use crate::http::filter::global_limit::{GlobalLimits, Judgement};
use crate::http::watch;

pub(super) async fn ask(
    ctx: &mut RequestCtx<'_>,
    view: &RequestConfig,
    limits: &GlobalLimits,
) -> Result<(), Stop> {
    let Some(question) = limits.question(&ctx.input(None)) else { return Ok(()) };
    let came = match view.http.cluster(&limits.config.cluster) {
        Some(cluster) => {
            let call = limits.ask(&question, &ctx.input(None), cluster)?;
            let pools = &ctx.conn.worker.pools;
            let calling = async { Ok(call::send(pools, call).await) };
            watch::guarded(ctx, None, calling).await?
        }
        None => {
            let detail = format!("there is no cluster {}", limits.config.cluster);
            Err(Failure::local(Stage::Authorize, FailureKind::NoCluster(503), detail))
        }
    };
    ctx.tick();
    match limits.judge(came, &question) {
        Judgement::Passes(answer) => {
            for (name, value) in answer.request.into_iter().filter(|(name, _)| !is_ours(name)) {
                // What does not fit is lost.
                let _ = ctx.head.append(&name, value);
            }
            respond_with(ctx, answer.response, How::Append);
        }
        Judgement::Refused(failure, response) => {
            respond_with(ctx, response, How::Set);
            return Err(failure.into());
        }
        Judgement::Failed(failure) if limits.config.status_on_error.is_none() => {
            tracing::debug!(%failure, "a request passes without its rate limit");
        }
        Judgement::Failed(failure) => return Err(failure.into()),
    }
    Ok(())
}

fn respond_with(ctx: &mut RequestCtx<'_>, headers: Vec<(String, Vec<u8>)>, how: How) {
    let headers = headers.into_iter().filter(|(name, _)| !is_ours(name));
    let mut edits = headers.map(|(name, value)| ResponseEdit { name: name.into(), value, how }).peekable();
    if edits.peek().is_some() {
        ctx.extras().response.extend(edits);
    }
}

/// What routing, framing and trust are made of is not the service's to change.
fn is_ours(name: &str) -> bool {
    let made_of = [
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "keep-alive",
        "upgrade",
        "te",
        "trailer",
        "grpc-status",
        "grpc-message",
        "x-forwarded-client-cert",
    ];
    name.starts_with(':') || name.starts_with("x-outrigger-") || made_of.contains(&name)
}
