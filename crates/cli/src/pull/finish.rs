//! From bytes that came to a file that can be trusted.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use ds4_formats::gguf::Gguf;

use super::{Identity, Order, Part};
use crate::sums::Sums;

/// A file that is whole.
#[derive(Clone, Debug)]
pub(crate) struct Finished {
    /// Where it is.
    pub path: PathBuf,
    /// Its length.
    pub n_bytes: u64,
    /// Its SHA-256.
    pub sha256: String,
    /// Whether the server stated that sum.
    pub is_stated: bool,
}

/// Checks the bytes, gives the file its name and writes its sums. Wrong bytes are deleted.
///
/// # Errors
/// The bytes are not those that the server states, or not a GGUF file; the disk fails; `on`, which
/// is told how many bytes were read, said to stop.
pub(crate) fn check_and_name(
    order: &Order,
    identity: &Identity,
    part: Part,
    on: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Finished> {
    let checked = check(part.path(), identity.sha256.as_deref(), on);
    let sums = match checked {
        Ok(Ok(sums)) => sums,
        Ok(Err(why)) => {
            part.discard()?;
            return Err(why.context(format!(
                "{}: what came was deleted; run the command again",
                order.file
            )));
        }
        Err(error) => return Err(error),
    };
    let path = order.path();
    part.name(&path)?;
    sums.write_beside(&path)?;
    Ok(Finished {
        path,
        n_bytes: sums.n_bytes,
        sha256: sums.sha256,
        is_stated: identity.sha256.is_some(),
    })
}

/// The sums of a file that has a sound table and, where one is known, the right SHA-256; the inner
/// error is the file's, the outer that of reading it.
///
/// # Errors
/// It cannot be read, or `on` said to stop.
pub(crate) fn check(
    path: &Path,
    sha256: Option<&str>,
    on: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Result<Sums>> {
    let gguf = match Gguf::open(path) {
        Ok(gguf) => gguf,
        Err(error) => return Ok(Err(error).context("it is not a whole GGUF file")),
    };
    let sums = Sums::of(path, &gguf, on)?;
    if let Some(expected) = sha256
        && sums.sha256 != expected
    {
        return Ok((|| {
            bail!(
                "its SHA-256 is {}, and the server states {expected}",
                sums.sha256
            )
        })());
    }
    Ok(Ok(sums))
}
