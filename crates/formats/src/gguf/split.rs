//! Models split over several files, `NAME-00001-of-00005.gguf` and so on.

use std::path::{Path, PathBuf};

use super::error::Error;
use super::read::{Gguf, Split};

/// What a file name says of its place: the name before the numbers, which file from 1, how many.
fn split_name(path: &Path) -> Option<(&str, u32, u32)> {
    fn number(digits: &str) -> Option<u32> {
        let plain = digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| digits.parse().ok()).flatten()
    }
    let stem = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (prefix, no) = rest.rsplit_once('-')?;
    Some((prefix, number(no)?, number(count)?))
}

/// The other files of the model whose first file is `path`; none when it is not split.
pub(super) fn siblings(path: &Path, split: Option<Split>) -> Result<Vec<PathBuf>, Error> {
    let Some(split) = split else {
        return Ok(Vec::new());
    };
    let Some((prefix, no, count)) = split_name(path) else {
        return Err(Error::Split(format!(
            "this is file {} of {}, and its name does not end in -{:05}-of-{:05}.gguf, \
             by which the others are found; give it its published name",
            u64::from(split.no) + 1,
            split.count,
            u64::from(split.no) + 1,
            split.count
        )));
    };
    if (split.no.checked_add(1), split.count) != (Some(no), count) {
        return Err(Error::Split(format!(
            "the name says file {no} of {count}, the metadata say file {} of {}; \
             give it its published name",
            u64::from(split.no) + 1,
            split.count
        )));
    }
    let name = |no: u32| format!("{prefix}-{no:05}-of-{count:05}.gguf");
    if no != 1 {
        return Err(Error::Split(format!(
            "this is file {no} of {count}; open the first, {}",
            name(1)
        )));
    }
    Ok((2..=count)
        .map(|no| path.with_file_name(name(no)))
        .collect())
}

/// Checks that `shard` says of itself what its name says: file `no` (from 0) of the model.
pub(super) fn check_sibling(first: &Gguf, shard: &Gguf, no: u32) -> Result<(), Error> {
    let count = first.split()?.map_or(1, |split| split.count);
    match shard.split()? {
        Some(split) if (split.no, split.count) == (no, count) => Ok(()),
        found => Err(Error::Split(format!(
            "found {}, expected file {} of {count}; the files are not of one model",
            found.map_or("a file that is not split".to_owned(), |split| format!(
                "file {} of {}",
                u64::from(split.no) + 1,
                split.count
            )),
            no + 1
        ))),
    }
}

/// Checks the tensor count of all files together, if the first announces it.
pub(super) fn check_total(whole: &Gguf) -> Result<(), Error> {
    let expected = whole.split()?.and_then(|split| split.n_tensors);
    let found = whole.tensors().len() as u64;
    match expected {
        Some(expected) if expected != found => Err(Error::Split(format!(
            "found {found} tensors in all files, expected {expected}; \
             the files are not of one model"
        ))),
        _ => Ok(()),
    }
}
