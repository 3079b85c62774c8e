//! Ctrl+C while the model works: stop the generation, keep the conversation.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};

/// Exit status of a program that Ctrl+C ended, as shells report it.
pub(crate) const EXIT_STATUS: u8 = 130;

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// From now on Ctrl+C raises a flag; a second one, before the first was noticed, ends the
/// program. Until this is called it ends the program at once.
pub(crate) fn watch() -> Result<()> {
    static INSTALLED: Once = Once::new();
    let mut result = Ok(());
    INSTALLED.call_once(|| {
        result = ctrlc::set_handler(|| {
            if REQUESTED.swap(true, Ordering::SeqCst) {
                std::process::exit(i32::from(EXIT_STATUS));
            }
        });
    });
    result.context("cannot watch for Ctrl+C")
}

/// Whether Ctrl+C was pressed since the last [`clear`].
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// Forgets a press.
pub(crate) fn clear() {
    REQUESTED.store(false, Ordering::SeqCst);
}
