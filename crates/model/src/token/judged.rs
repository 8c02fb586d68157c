//! A request with what its tokens say, as policies look at it.

use crate::claims::Proven;
use crate::request::RequestView;

/// A request, and what its tokens say.
#[derive(Debug)]
pub struct WithTokens<'a, R> {
    /// The request.
    pub request: &'a R,
    /// What its tokens say, if it has any good ones.
    pub tokens: Option<&'a Proven>,
    /// Nobody can look at its tokens yet: all conditions on claims hold, or none.
    pub supposed: Option<bool>,
}

impl<R: RequestView> RequestView for WithTokens<'_, R> {
    fn method(&self) -> &str {
        self.request.method()
    }
    fn path(&self) -> &str {
        self.request.path()
    }
    fn authority(&self) -> &str {
        self.request.authority()
    }
    fn scheme(&self) -> &str {
        self.request.scheme()
    }
    fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.request.header(name)
    }
    fn tokens(&self) -> Option<&Proven> {
        self.tokens
    }
    fn supposed(&self) -> Option<bool> {
        self.supposed
    }
}
