//! What `--version` says.

/// Version and commit: `-V`.
pub(crate) const SHORT: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("DS4_COMMIT"), ")");

/// The platform it was built for.
pub(crate) const TARGET: &str = env!("DS4_TARGET");

/// Also what is built in: `--version`.
pub(crate) const LONG: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("DS4_COMMIT"),
    ")\nfeatures: ",
    env!("DS4_FEATURES"),
    "\ntarget: ",
    env!("DS4_TARGET"),
);
