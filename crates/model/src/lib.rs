//! The network, once.
