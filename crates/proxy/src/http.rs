//! HTTP in the data path: heads, the HTTP/1 codec, and what crosses between HTTP/1 and HTTP/2.

pub mod convert;
pub mod h1;
pub mod head;
