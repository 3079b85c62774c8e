//! Which model to open: `-m`, else `$DS4_MODEL`, else one that lies here or among the user's
//! models, else the built-in one.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::reply_writer::printable;
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
    /// Nobody; it lies in a place where models are looked for.
    Place(Place),
}

/// Where a model is looked for when nobody names one, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The file [`FILE_HERE`], as the C original has it.
    Here,
    /// The folder [`FOLDER_HERE`].
    FolderHere,
    /// The folder of the user's models.
    Models,
}

/// A model in the working folder.
const FILE_HERE: &str = "ds4flash.gguf";
/// A folder of models in the working folder.
const FOLDER_HERE: &str = "gguf";

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
            &places(Path::new(""), folders::models()),
            BUILT_IN.is_some(),
        )
    }

    /// Which model it is, by the name in its file, and why: a line for a log.
    pub(crate) fn line(&self, name: &str) -> String {
        let name = printable(name);
        match self {
            ModelChoice::File { path, named_by } => {
                let why = match named_by {
                    NamedBy::Flag => String::new(),
                    NamedBy::Variable => format!(", from ${VARIABLE}"),
                    NamedBy::Place(place) => format!(", {}; -m FILE opens another", place.name()),
                };
                format!("model: {name}, {}{why}", path.display())
            }
            ModelChoice::BuiltIn => format!(
                "model: {name}, which shows that everything works and knows little; -m FILE \
                 opens another"
            ),
        }
    }

    /// The same for a person, who may need to be told how to get the full model.
    pub(crate) fn banner(&self, name: &str) -> String {
        match self {
            ModelChoice::File { .. } => self.line(name),
            ModelChoice::BuiltIn => format!(
                "This is the small built-in model, which shows that everything works and knows \
                 little.\nThe full one needs about 90 GB of disk and memory:\n  {}{}",
                download_command(),
                if cfg!(feature = "pull") {
                    String::new()
                } else {
                    format!("\n  ds4 -m {PUBLISHED}")
                },
            ),
        }
    }

    /// Who is to blame for a file that cannot be opened, when it was not named on the command
    /// line.
    pub(crate) fn origin(&self) -> Option<String> {
        match self {
            ModelChoice::File { named_by, .. } => match named_by {
                NamedBy::Flag => None,
                NamedBy::Variable => Some(format!("the model named by ${VARIABLE}")),
                NamedBy::Place(place) => Some(format!("the model found {}", place.name())),
            },
            ModelChoice::BuiltIn => None,
        }
    }
}

impl Place {
    fn name(self) -> &'static str {
        match self {
            Place::Here => "in the working folder",
            Place::FolderHere => "in the folder gguf, the first by name",
            Place::Models => "in the models folder, the first by name",
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
    places: &[(PathBuf, Place)],
    has_built_in: bool,
) -> Result<ModelChoice> {
    let file = |path: PathBuf, named_by| Ok(ModelChoice::File { path, named_by });
    if let Some(path) = flag {
        return file(path.to_owned(), NamedBy::Flag);
    }
    if let Some(path) = variable.filter(|v| !v.is_empty()) {
        return file(path.into(), NamedBy::Variable);
    }
    for (place, kind) in places {
        let found = match kind {
            Place::Here => Some(place.clone()).filter(|path| path.is_file()),
            Place::FolderHere | Place::Models => first_model(place),
        };
        if let Some(path) = found {
            return file(path, NamedBy::Place(*kind));
        }
    }
    if has_built_in {
        return Ok(ModelChoice::BuiltIn);
    }
    bail!(
        "no model: give one with -m FILE or ${VARIABLE}, or get the published one with `{}`",
        download_command()
    )
}

/// Where models are looked for, from a working folder.
fn places(here: &Path, models: Option<PathBuf>) -> Vec<(PathBuf, Place)> {
    let models = models.map(|folder| (folder, Place::Models));
    [
        (here.join(FILE_HERE), Place::Here),
        (here.join(FOLDER_HERE), Place::FolderHere),
    ]
    .into_iter()
    .chain(models)
    .collect()
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
    fn the_flag_wins_over_the_variable_over_what_lies_about_over_the_built_in_model() {
        let here = tempfile::tempdir().unwrap();
        let models = tempfile::tempdir().unwrap();
        let file = |path: &Path, named_by| ModelChoice::File {
            path: path.to_owned(),
            named_by,
        };
        let choose = |flag: Option<&str>, variable: Option<&str>| {
            let places = places(here.path(), Some(models.path().to_owned()));
            choose(flag.map(Path::new), variable.map(Into::into), &places, true).unwrap()
        };
        assert_eq!(choose(None, None), ModelChoice::BuiltIn);
        assert_eq!(choose(None, Some("")), ModelChoice::BuiltIn);
        // Every place wins over those before.
        for name in ["b.gguf", "a.gguf", "a.txt"] {
            std::fs::write(models.path().join(name), "").unwrap();
        }
        let first = models.path().join("a.gguf");
        let place = NamedBy::Place;
        assert_eq!(choose(None, None), file(&first, place(Place::Models)));
        let folder = here.path().join("gguf");
        std::fs::create_dir(&folder).unwrap();
        assert_eq!(choose(None, None), file(&first, place(Place::Models)));
        std::fs::write(folder.join("c.gguf"), "").unwrap();
        let first = folder.join("c.gguf");
        assert_eq!(choose(None, None), file(&first, place(Place::FolderHere)));
        let first = here.path().join("ds4flash.gguf");
        std::fs::write(&first, "").unwrap();
        assert_eq!(choose(None, None), file(&first, place(Place::Here)));
        let (flag, variable) = ("flag.gguf", "variable.gguf");
        assert_eq!(
            choose(None, Some(variable)),
            file(Path::new(variable), NamedBy::Variable)
        );
        assert_eq!(
            choose(Some(flag), Some(variable)),
            file(Path::new(flag), NamedBy::Flag)
        );
    }

    #[test]
    fn a_folder_that_is_not_there_holds_no_model() {
        let places = places(Path::new("/no/such/folder"), None);
        let choice = choose(None, None, &places, true).unwrap();
        assert_eq!(choice, ModelChoice::BuiltIn);
    }

    #[test]
    fn without_any_model_the_error_names_the_ways_to_get_one() {
        let error = choose(None, None, &[], false).unwrap_err().to_string();
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
