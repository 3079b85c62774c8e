//! The exact texts of the chat protocol's markers. The bar is U+FF5C and the lower block is
//! U+2581; neither is ASCII.

/// Begins a prompt.
pub const BOS: &str = "<｜begin▁of▁sentence｜>";
/// Ends an assistant turn.
pub const EOS: &str = "<｜end▁of▁sentence｜>";
/// Begins a user turn.
pub const USER: &str = "<｜User｜>";
/// Begins an assistant turn.
pub const ASSISTANT: &str = "<｜Assistant｜>";
/// Begins reasoning.
pub const THINK_OPEN: &str = "<think>";
/// Ends reasoning.
pub const THINK_CLOSE: &str = "</think>";
/// Stands in every DSML tag behind `<` or `</`.
pub const DSML: &str = "｜DSML｜";
/// Begins a latest-reminder turn.
pub const LATEST_REMINDER: &str = "<｜latest_reminder｜>";
