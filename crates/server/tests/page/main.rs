//! The page at `/` in a browser: Chromium without a window, driven over WebDriver against the
//! server with a source of tokens that says what a test wrote down.
//!
//! Needs `chromedriver` and Chromium; where they are not, every test says so and passes.

mod browser;
mod conversation;
mod kept;
mod looks;
#[path = "../server/script.rs"]
#[allow(dead_code, reason = "other tests look closer")]
mod script;
mod trust;
#[path = "../server/web.rs"]
#[allow(dead_code, reason = "other tests look closer")]
mod web;
