//! Bytes and numbers.
