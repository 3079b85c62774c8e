//! The protocols: requests in, replies out. Nothing in here waits, locks or
//! knows the engine; every function is a value to a value.
