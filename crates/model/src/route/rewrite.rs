//! What a route makes of path and authority: pure, the same for the proxy and for `explain`.

use std::borrow::Cow;

use crate::request::RequestView;
use crate::route::table::CompiledRoute;
use crate::route::{AuthorityOf, Redirect, Rewrite};

impl CompiledRoute {
    /// Path and query of a request as the upstream is to see them, before they are brought into their one form; `None`: the
    /// route rewrites nothing.
    #[inline]
    pub fn rewritten(&self, rewrite: &Rewrite, path: &str) -> Option<String> {
        match &rewrite.prefix {
            Some(prefix) => Some(joined(self.replace_prefix(path, prefix))),
            None => self.replace_regex(path).map(joined),
        }
    }

    /// The authority that the upstream is to see, by the path as it came; `None`: the route leaves it.
    pub fn authority<'r, R: RequestView>(
        &self,
        rewrite: &'r Rewrite,
        request: &'r R,
    ) -> Option<Cow<'r, str>> {
        if let Some(authority) = &rewrite.authority {
            return Some(authority.into());
        }
        match rewrite.authority_of.as_ref()? {
            AuthorityOf::Header(name) => {
                let value = std::str::from_utf8(request.header(name).next()?).ok()?;
                (!value.is_empty()).then_some(value.into())
            }
            AuthorityOf::Path(..) => self.authority_of_path(request.path()).map(Cow::Owned),
            // Of each attempt.
            AuthorityOf::Endpoint => None,
        }
    }

    /// Where a redirect leads.
    pub fn location<R: RequestView>(&self, redirect: &Redirect, request: &R) -> String {
        let scheme = redirect.scheme.as_deref().unwrap_or(request.scheme());
        let authority = redirect.authority.as_deref().unwrap_or(request.authority());
        let host = match authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !host.ends_with(':') => host,
            _ => authority,
        };
        let default = if scheme == "https" { 443 } else { 80 };
        let authority = match redirect.port {
            Some(port) if port == default => host.to_owned(),
            Some(port) => format!("{host}:{port}"),
            // A new scheme means that scheme's own port, unless the rule names one with its authority.
            None if redirect.scheme.is_some() && redirect.authority.is_none() => host.to_owned(),
            None => authority.to_owned(),
        };
        let whole = request.path();
        let (path, query) = whole.split_once('?').map_or((whole, None), |(path, query)| (path, Some(query)));
        let path = match (&redirect.path, &redirect.prefix) {
            (Some(path), _) => path.clone(),
            (None, Some(prefix)) => joined(self.replace_prefix(path, prefix)),
            (None, None) => self.replace_regex(path).map_or_else(|| path.to_owned(), joined),
        };
        match query.filter(|_| !redirect.strip_query) {
            Some(query) if !path.contains('?') => format!("{scheme}://{authority}{path}?{query}"),
            _ => format!("{scheme}://{authority}{path}"),
        }
    }
}

impl Redirect {
    /// The HTTP status; 301 where none is said.
    pub fn status(&self) -> u16 {
        if self.status == 0 { 301 } else { self.status }
    }
}

/// A replaced prefix may leave two slashes or none: `/a/` by `/` in `/a/b`, and `/a` by `/` in `/a`.
fn joined(path: String) -> String {
    if path.starts_with("//") {
        return path[1..].to_owned();
    }
    if path.starts_with('/') { path } else { format!("/{path}") }
}
