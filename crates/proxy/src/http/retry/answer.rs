//! The head of a response, as conditions on headers look at it.

use outrigger_model::request::RequestView;

use crate::http::attempt::decimal;
use crate::http::head::ResponseHead;

/// A response, whose only pseudo-header is `:status`.
pub struct Answer<'a> {
    head: &'a ResponseHead,
    digits: [u8; 10],
}

impl<'a> Answer<'a> {
    pub fn of(head: &'a ResponseHead) -> Self {
        let mut digits = [0; 10];
        decimal(u32::from(head.status()), &mut digits);
        Self { head, digits }
    }
}

impl RequestView for Answer<'_> {
    fn method(&self) -> &str {
        ""
    }
    fn path(&self) -> &str {
        ""
    }
    fn authority(&self) -> &str {
        ""
    }
    fn scheme(&self) -> &str {
        ""
    }
    fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a {
        // A status has three digits, which are written to the end.
        let status = (name == ":status").then_some(&self.digits[7..]);
        status.into_iter().chain(self.head.headers(name))
    }
}
