//! The answer of an attempt that has no client beside it: copies, questions of filters, checks of health, and rivals.

use std::future::poll_fn;
use std::task::{Poll, ready};

use outrigger_identity::CredentialStore;

use super::live::Live;
use crate::failure::Failure;
use crate::http::body::Body;

impl Live {
    /// Sends the body and waits for the head of the final response; interim ones are nobody's.
    ///
    /// # Errors
    /// The connection broke off, what came is no response, or whoever answers is trusted no longer.
    pub async fn until_head(
        &mut self,
        body: &mut Body,
        credentials: &CredentialStore,
    ) -> Result<(), Failure> {
        poll_fn(|cx| {
            self.trusted(credentials)?;
            self.poll_upload(cx, body)?;
            loop {
                match ready!(self.poll_head(cx)) {
                    Ok(()) if self.head.is_interim() => {}
                    result => return Poll::Ready(result),
                }
            }
        })
        .await
    }
}
