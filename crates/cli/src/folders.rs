//! The user's folders, after the XDG base directory specification.

use std::ffi::OsString;
use std::path::PathBuf;

/// What belongs to the user's programs: `$XDG_DATA_HOME`.
pub(crate) fn data() -> Option<PathBuf> {
    base("XDG_DATA_HOME", ".local/share")
}

/// Models the user keeps: `$XDG_DATA_HOME/ds4/models`.
pub(crate) fn models() -> Option<PathBuf> {
    Some(data()?.join("ds4/models"))
}

/// What may be lost without harm to the user's work: `$XDG_STATE_HOME/ds4`.
pub(crate) fn state() -> Option<PathBuf> {
    Some(base("XDG_STATE_HOME", ".local/state")?.join("ds4"))
}

/// What programs can make again: `$XDG_CACHE_HOME`.
pub(crate) fn cache() -> Option<PathBuf> {
    base("XDG_CACHE_HOME", ".cache")
}

fn base(variable: &str, below_home: &str) -> Option<PathBuf> {
    resolve(std::env::var_os(variable), std::env::home_dir(), below_home)
}

/// The specification: a relative path in the variable counts as not set.
fn resolve(variable: Option<OsString>, home: Option<PathBuf>, below: &str) -> Option<PathBuf> {
    variable
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| Some(home?.join(below)))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn an_absolute_variable_wins_over_the_home_folder() {
        let home = || Some(PathBuf::from("/home/ada"));
        for (variable, home, expected) in [
            (Some("/data"), home(), Some("/data")),
            (Some("data"), home(), Some("/home/ada/.local/share")),
            (Some(""), home(), Some("/home/ada/.local/share")),
            (None, home(), Some("/home/ada/.local/share")),
            (None, None, None),
        ] {
            let found = resolve(variable.map(OsString::from), home, ".local/share");
            assert_eq!(found, expected.map(PathBuf::from), "{variable:?}");
        }
    }
}
