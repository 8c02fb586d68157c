//! How workloads come to an identity and lose it: tokens, certificates, revocations, roots.

use std::time::Duration;

use http::Method;
use outrigger_identity::JoinFile;

use super::{Client, ClientError, escaped, query_string};
use crate::api::types::{
    AuthorityBody, ForgetQuery, IdentityBody, IdentityRequest, ReinstatedBody, RevocationBody,
    RevocationRequest, RevokedBody, RevokedEntryBody, TokenBody, TokenRequest, TrustBundleBody,
};

impl Client {
    /// Makes a join token.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn create_token(&self, request: &TokenRequest) -> Result<JoinFile, ClientError> {
        self.json(Method::POST, "/v1/tokens", Some(request), Duration::ZERO).await
    }

    /// All join tokens, without secrets.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn tokens(&self) -> Result<Vec<TokenBody>, ClientError> {
        self.get("/v1/tokens").await
    }

    /// Revokes all join tokens of an identity.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn revoke_tokens(
        &self,
        namespace: &str,
        service_account: &str,
    ) -> Result<RevokedBody, ClientError> {
        let path = format!("/v1/tokens/{}/{}", escaped(namespace), escaped(service_account));
        self.json(Method::DELETE, &path, None::<&()>, Duration::ZERO).await
    }

    /// Makes a key and a certificate.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn issue_identity(&self, request: &IdentityRequest) -> Result<IdentityBody, ClientError> {
        self.json(Method::POST, "/v1/identities", Some(request), Duration::ZERO).await
    }

    /// All that are revoked.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn revoked(&self) -> Result<Vec<RevokedEntryBody>, ClientError> {
        self.get("/v1/revocations").await
    }

    /// Cuts off an identity or a certificate.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn revoke(&self, whom: &RevocationRequest) -> Result<RevocationBody, ClientError> {
        self.json(Method::POST, "/v1/revocations", Some(whom), Duration::ZERO).await
    }

    /// Takes a revocation back.
    ///
    /// # Errors
    /// `Refused` with 404 when there is none.
    pub async fn reinstate(&self, whom: &RevocationRequest) -> Result<ReinstatedBody, ClientError> {
        let path = format!("/v1/revocations{}", query_string(whom));
        self.json(Method::DELETE, &path, None::<&()>, Duration::ZERO).await
    }

    /// The certificate authority.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn authority(&self) -> Result<AuthorityBody, ClientError> {
        self.get("/v1/authority").await
    }

    /// Makes a new root and signs with it; the old ones stay trusted.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn rotate_root(&self) -> Result<AuthorityBody, ClientError> {
        self.json(Method::POST, "/v1/authority/rotate-root", None::<&()>, Duration::ZERO).await
    }

    /// Ends a rotation.
    ///
    /// # Errors
    /// `Refused` with 409 while certificates under old roots may be in use.
    pub async fn forget_old_roots(&self, force: bool) -> Result<AuthorityBody, ClientError> {
        let path = format!("/v1/authority/forget-old-roots{}", query_string(&ForgetQuery { force }));
        self.json(Method::POST, &path, None::<&()>, Duration::ZERO).await
    }

    /// Whom the mesh trusts.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn trust_bundle(&self) -> Result<TrustBundleBody, ClientError> {
        self.get("/v1/trust-bundle").await
    }
}
