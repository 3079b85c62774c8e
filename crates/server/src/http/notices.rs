//! What the log says once, although every turn of an agent's session gives reason for it.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

/// Notices remembered; beyond that all are forgotten, and may be said again.
const MAX_SAID: usize = 1024;

/// Notices that were said.
#[derive(Debug, Default)]
pub(super) struct Notices {
    said: Mutex<HashSet<String>>,
}

impl Notices {
    /// Whether a notice has yet to be said; asking counts as saying it.
    pub(super) fn is_fresh(&self, notice: &str) -> bool {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.contains(notice) {
            return false;
        }
        if said.len() >= MAX_SAID {
            said.clear();
        }
        said.insert(notice.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_is_said_once_and_memory_is_bounded() {
        let notices = Notices::default();
        assert!(notices.is_fresh("a"));
        assert!(!notices.is_fresh("a"));
        for n in 0..3 * MAX_SAID {
            assert!(notices.is_fresh(&n.to_string()));
            assert!(notices.said.lock().unwrap().len() <= MAX_SAID);
        }
    }
}
