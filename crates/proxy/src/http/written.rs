//! What configuration writes into a request, and into the answer that is made of a failure. When, others say.

use outrigger_model::ext_authz::How;
use outrigger_model::route::HeaderEdits;
use outrigger_model::route::edits::Write;
use outrigger_model::route::table::CompiledRoute;

use crate::failure::Failure;
use crate::http::context::RequestCtx;
use crate::http::facts::{self, About};
use crate::http::filter::ResponseEdit;
use crate::http::h1::EditError;
use crate::http::head::RequestHead;

/// Names of configuration are in lower case.
fn is_authority(name: &str) -> bool {
    matches!(name, ":authority" | "host")
}

/// Edits of a request. Commands read it as it is before.
///
/// # Errors
/// The result would not be a request that can be written, or have no room.
pub fn apply_request(
    ctx: &mut RequestCtx<'_>,
    route: &CompiledRoute,
    edits: &HeaderEdits,
) -> Result<(), EditError> {
    let head = &mut ctx.head;
    for name in &edits.remove {
        head.remove(name);
    }
    let writes = edits.writes(|name| head.has(name));
    if edits.has_commands() {
        let said = facts::said(writes, &About::request(ctx, route).with(None));
        for (write, value) in said {
            write_request(&mut ctx.head, write, &value)?;
        }
        return Ok(());
    }
    for write in writes {
        write_request(head, write, write.pair().1.plain().unwrap_or_default().as_bytes())?;
    }
    Ok(())
}

fn write_request(head: &mut RequestHead, write: Write<'_>, value: &[u8]) -> Result<(), EditError> {
    match write {
        // There is one, so that adding it is setting it; it has no commands.
        Write::Set(name, text) | Write::Add(name, text) if is_authority(name) => {
            head.set_authority(text.plain().unwrap_or_default())
        }
        Write::Set(name, _) => head.set(name, value),
        Write::Add(name, _) => head.append(name, value),
    }
}

/// Edits of the answer that we make of a failure.
#[cold]
pub fn refused(ctx: &mut RequestCtx<'_>, route: &CompiledRoute, edits: &HeaderEdits, failure: &Failure) {
    if edits.is_empty() {
        return;
    }
    let lists = [
        (&edits.set, How::Set),
        (&edits.set_if_present, How::IfPresent),
        (&edits.add_if_absent, How::IfAbsent),
        (&edits.add, How::Append),
    ];
    let about = About::failure(ctx, route, failure);
    let known = about.with(None);
    let written =
        lists.into_iter().flat_map(|(list, how)| list.iter().map(move |(name, value)| (name, value, how)));
    let written = written.filter_map(|(name, value, how)| {
        let value = value.value(&known)?.into_owned();
        Some(ResponseEdit { name: name.clone().into(), value, how })
    });
    let written: Vec<_> = written.collect();
    ctx.extras().response.extend(written);
}

/// Edits of a request that a limit would have refused. What does not fit is lost.
#[cold]
pub fn passed(ctx: &mut RequestCtx<'_>, route: &CompiledRoute, edits: &HeaderEdits) {
    if let Err(error) = apply_request(ctx, route, edits) {
        tracing::debug!(%error, "a request could not be marked as one beyond a limit");
    }
}
