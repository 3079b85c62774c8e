//! Which model to open: `-m`, else `$DS4_MODEL`, else the user's models, else the built-in one.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::{catalog, folders};

/// The variable that names a model file.
pub(crate) const VARIABLE: &str = "DS4_MODEL";

/// The small model that every build carries.
#[cfg(builtin_model)]
pub(crate) static BUILT_IN: Option<&[u8]> = Some(include_bytes!(env!("DS4_BUILTIN_MODEL")));
/// This build carries no model.
#[cfg(not(builtin_model))]
pub(crate) static BUILT_IN: Option<&[u8]> = None;

/// The published file to begin with.
const PUBLISHED: &str = catalog::PUBLISHED[0].file;

/// A model to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ModelChoice {
    /// A file.
    File {
        /// Where.
        path: PathBuf,
        /// Who named it.
        named_by: NamedBy,
    },
    /// [`BUILT_IN`].
    BuiltIn,
}

/// Who named a model file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NamedBy {
    /// The user, with `-m`.
    Flag,
    /// [`VARIABLE`].
    Variable,
    /// Nobody; it is the first in the user's folder.
    Folder,
}

impl ModelChoice {
    /// Chooses, from the environment where no file is given.
    ///
    /// # Errors
    /// No file is given or found, and this build carries no model.
    pub(crate) fn new(flag: Option<&Path>) -> Result<ModelChoice> {
        let variable = std::env::var_os(VARIABLE);
        choose(
            flag,
            variable,
            folders::models().as_deref(),
            BUILT_IN.is_some(),
        )
    }

    /// What to say about it when nobody named it by hand.
    pub(crate) fn banner(&self) -> Option<String> {
        match self {
            ModelChoice::File {
                named_by: NamedBy::Flag,
                ..
            } => None,
            ModelChoice::File {
                path,
                named_by: NamedBy::Variable,
            } => Some(format!("model: {}, from ${VARIABLE}", path.display())),
            ModelChoice::File {
                path,
                named_by: NamedBy::Folder,
            } => Some(format!(
                "model: {}, the first in the models folder; -m FILE opens another",
                path.display()
            )),
            ModelChoice::BuiltIn => Some(format!(
                "This is the small built-in model, which shows that everything works and knows \
                 little.\nThe full one needs about 90 GB of disk and memory:\n  {}{}",
                download_command(),
                if cfg!(feature = "pull") {
                    String::new()
                } else {
                    format!("\n  ds4 -m {PUBLISHED}")
                },
            )),
        }
    }
}

/// The command that fetches the published file.
fn download_command() -> String {
    if cfg!(feature = "pull") {
        format!("ds4 pull {}", catalog::PUBLISHED[0].id)
    } else {
        format!(
            "hf download {} {PUBLISHED} --local-dir .",
            catalog::REPOSITORY
        )
    }
}

fn choose(
    flag: Option<&Path>,
    variable: Option<OsString>,
    folder: Option<&Path>,
    has_built_in: bool,
) -> Result<ModelChoice> {
    let file = |path: PathBuf, named_by| Ok(ModelChoice::File { path, named_by });
    if let Some(path) = flag {
        return file(path.to_owned(), NamedBy::Flag);
    }
    if let Some(path) = variable.filter(|v| !v.is_empty()) {
        return file(path.into(), NamedBy::Variable);
    }
    if let Some(path) = folder.and_then(first_model) {
        return file(path, NamedBy::Folder);
    }
    if has_built_in {
        return Ok(ModelChoice::BuiltIn);
    }
    bail!(
        "no model: give one with -m FILE or ${VARIABLE}, or get the published one with `{}`",
        download_command()
    )
}

/// The first model of a folder by name; `None` when the folder is not there or has none.
fn first_model(folder: &Path) -> Option<PathBuf> {
    let mut names: Vec<OsString> = std::fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.file_name()))
        .filter(|name| is_model(name))
        .collect();
    names.sort();
    names.first().map(|name| folder.join(name))
}

/// Whether a file name is that of a model: draft blocks and the later files of a split model
/// cannot be opened by themselves.
fn is_model(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else {
        return false;
    };
    let Some(stem) = name.strip_suffix(".gguf") else {
        return false;
    };
    let lower = stem.to_lowercase();
    let is_support = lower.contains("-mtp-") || lower.contains("dspark");
    let is_later_part = stem
        .rsplit_once("-of-")
        .and_then(|(head, _)| head.rsplit_once('-'))
        .is_some_and(|(_, no)| {
            no.len() == 5 && no.bytes().all(|b| b.is_ascii_digit()) && no != "00001"
        });
    !stem.starts_with('.') && !is_support && !is_later_part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_wins_over_the_variable_over_the_folder_over_the_built_in_model() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("b.gguf"), "").unwrap();
        std::fs::write(folder.path().join("a.gguf"), "").unwrap();
        std::fs::write(folder.path().join("a.txt"), "").unwrap();
        let empty = tempfile::tempdir().unwrap();
        let file = |path: &Path, named_by| ModelChoice::File {
            path: path.to_owned(),
            named_by,
        };
        let (flag, variable) = (Path::new("flag.gguf"), OsString::from("variable.gguf"));
        let full = Some(folder.path());
        let first = folder.path().join("a.gguf");
        for (flag, variable, folder, expected) in [
            (
                Some(flag),
                Some(variable.clone()),
                full,
                file(flag, NamedBy::Flag),
            ),
            (
                None,
                Some(variable.clone()),
                full,
                file(Path::new(&variable), NamedBy::Variable),
            ),
            (
                None,
                Some(OsString::new()),
                full,
                file(&first, NamedBy::Folder),
            ),
            (None, None, full, file(&first, NamedBy::Folder)),
            (None, None, Some(empty.path()), ModelChoice::BuiltIn),
            (
                None,
                None,
                Some(Path::new("/no/such/folder")),
                ModelChoice::BuiltIn,
            ),
            (None, None, None, ModelChoice::BuiltIn),
        ] {
            assert_eq!(choose(flag, variable, folder, true).unwrap(), expected);
        }
    }

    #[test]
    fn without_any_model_the_error_names_the_ways_to_get_one() {
        let error = choose(None, None, None, false).unwrap_err().to_string();
        for word in ["-m FILE", "$DS4_MODEL", &download_command()] {
            assert!(error.contains(word), "{word} is not in: {error}");
        }
    }

    #[test]
    fn draft_blocks_and_later_parts_are_no_models() {
        for (name, expected) in [
            ("model.gguf", true),
            (PUBLISHED, true),
            ("model-00001-of-00003.gguf", true),
            ("model-00002-of-00003.gguf", false),
            ("DeepSeek-V4-Flash-MTP-Q4K-Q8_0-F32.gguf", false),
            ("DeepSeek-V4-Flash-DSpark-support-0731.gguf", false),
            (".partial.gguf", false),
            ("model.gguf.part", false),
            ("README.md", false),
        ] {
            assert_eq!(is_model(OsStr::new(name)), expected, "{name}");
        }
    }
}
