//! Characters, tokens and messages.
