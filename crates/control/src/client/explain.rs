//! Questions about what holds.

use std::time::Duration;

use http::Method;

use super::{Client, ClientError, query_string};
use crate::explain::body::{ExplainRequest, Explanation};
use crate::explain::describe::{DescribeQuery, Description};

impl Client {
    /// What becomes of a request, and why.
    ///
    /// # Errors
    /// `Refused` with 404 when nobody is called like the workload that it is from.
    pub async fn explain(&self, asked: &ExplainRequest) -> Result<Explanation, ClientError> {
        self.json(Method::POST, "/v1/explain", Some(asked), Duration::ZERO).await
    }

    /// The effective rules of a service.
    ///
    /// # Errors
    /// `Refused` with 404 when nobody is called so.
    pub async fn describe(&self, query: &DescribeQuery) -> Result<Description, ClientError> {
        self.get(&format!("/v1/describe{}", query_string(query))).await
    }
}
