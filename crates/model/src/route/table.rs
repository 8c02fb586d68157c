//! Route matching: pure, the same for the proxy, the analyzer and `explain`.
