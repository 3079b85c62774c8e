//! The keys of a server's clients.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

/// Those of the command line or the environment, and those of a file with one on every line, in
/// which lines that begin with `#` are notes.
///
/// # Errors
/// An empty key, a file that cannot be read or has none.
pub(crate) fn read(given: &[String], file: Option<&Path>) -> Result<Vec<String>> {
    if given.iter().any(|key| key.trim().is_empty()) {
        bail!(
            "--api-key is empty, as it is when a variable is not set: expected a key, or no such \
             flag and no DS4_API_KEY"
        );
    }
    let mut keys = given.to_vec();
    if let Some(path) = file {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("--api-key-file {}", path.display()))?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let lines = text.lines().map(str::trim);
        let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        keys.extend(lines.map(str::to_owned));
    }
    if keys.is_empty() && file.is_some() {
        bail!("--api-key-file holds no key: expected one on every line");
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_key_is_refused_and_a_file_of_keys_may_have_notes() {
        let error = read(&[String::new()], None).expect_err("no key");
        let error = error.to_string();
        assert!(error.contains("--api-key is empty"), "{error}");
        assert_eq!(read(&[], None).expect("none"), Vec::<String>::new());

        let file = tempfile::NamedTempFile::new().expect("a file");
        let text = "\u{feff}one\r\n# of the others\n\n two \n";
        std::fs::write(file.path(), text).expect("text");
        let keys = read(&["zero".to_owned()], Some(file.path())).expect("keys");
        assert_eq!(keys, ["zero", "one", "two"]);
        std::fs::write(file.path(), "# none\n").expect("text");
        assert!(read(&[], Some(file.path())).is_err());
    }
}
