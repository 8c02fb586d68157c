#![forbid(unsafe_code)]
//! SPIFFE identities, key and certificate life cycle, CSR client, authority, mTLS.
