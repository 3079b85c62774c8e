//! `ds4`: talk to DeepSeek V4 Flash.
fn main() {}
