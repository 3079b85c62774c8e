//! Identifiers that cannot be guessed: they act as keys to what they name.

use std::fmt::Write as _;

/// `prefix` and `n_digits` lower-case hex digits from the system's cryptographic source.
///
/// # Panics
/// The system has no such source; nothing that a server does would be safe then.
pub fn new_id(prefix: &str, n_digits: usize) -> String {
    let mut bytes = vec![0; n_digits.div_ceil(2)];
    getrandom::fill(&mut bytes).expect("the system's random source");
    let mut id = prefix.to_owned();
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(id, "{byte:02x}");
    }
    id.truncate(prefix.len() + n_digits);
    id
}

/// What of a call's id is the same in every protocol: the part behind its prefix (`call_`,
/// `toolu_` ...).
pub fn without_prefix(id: &str) -> &str {
    id.rsplit_once('_').map_or(id, |(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_their_length_and_differ() {
        let ids = [new_id("call_", 32), new_id("call_", 32)];
        assert_ne!(ids[0], ids[1]);
        for id in ids {
            assert_eq!(id.len(), 37);
            assert!(without_prefix(&id).chars().all(|c| c.is_ascii_hexdigit()));
        }
        assert_eq!(new_id("", 7).len(), 7);
    }
}
