//! Questions about what holds.

use std::time::Duration;

use http::Method;

use super::{Client, ClientError};
use crate::explain::body::{ExplainRequest, Explanation};

impl Client {
    /// What becomes of a request, and why.
    ///
    /// # Errors
    /// `Refused` with 404 when nobody is called like the workload that it is from.
    pub async fn explain(&self, asked: &ExplainRequest) -> Result<Explanation, ClientError> {
        self.json(Method::POST, "/v1/explain", Some(asked), Duration::ZERO).await
    }
}
