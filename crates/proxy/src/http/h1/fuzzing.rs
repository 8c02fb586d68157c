//! Fuzz bodies: plain functions that assert what must hold for any bytes.
