//! HTTP in the data path: one request from its head to the last byte of its response.
//!
//! `server` reads requests, `request` routes and filters them, `retry` over `attempt` and `exchange` sends them and brings
//! their responses, `respond` answers. `h1` is the codec, `head`, `body` and `send` are the two protocols as one.

pub mod attempt;
pub mod authority;
pub mod body;
pub mod breakage;
pub mod call;
pub mod chain;
pub mod conn;
pub mod context;
pub mod convert;
pub mod copy;
pub mod duration;
pub mod edit;
pub mod exchange;
pub mod facts;
pub mod filter;
pub mod grpc;
pub mod h1;
pub mod hash;
pub mod head;
pub mod load_report;
pub mod map;
pub mod measure;
pub mod mirror;
pub mod redact;
pub mod request;
pub mod respond;
pub mod retry;
pub mod send;
pub mod server;
pub mod session;
pub mod timeout;
pub mod trace;
pub mod turn;
pub mod upgrade;
pub mod watch;
pub mod window;
pub mod wire;
pub mod written;
