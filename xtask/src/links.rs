//! Relative links in Markdown files.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::root;

/// Every relative link of every Markdown file names an existing file.
pub(crate) fn run() -> ExitCode {
    let mut files = Vec::new();
    collect(&root(), &mut files);
    let mut n_links = 0;
    let mut broken = Vec::new();
    for file in &files {
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) => {
                broken.push(format!("{}: {error}", file.display()));
                continue;
            }
        };
        for target in targets(&text) {
            n_links += 1;
            let path = file.parent().expect("a file has a folder").join(target);
            if !path.exists() {
                broken.push(format!("{}: no such file: {target}", file.display()));
            }
        }
    }
    for line in &broken {
        eprintln!("{line}");
    }
    println!(
        "{} Markdown files, {n_links} relative links, {} broken",
        files.len(),
        broken.len()
    );
    if broken.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() {
            if name != "target" && !name.to_string_lossy().starts_with('.') {
                collect(&path, files);
            }
        } else if path.extension().is_some_and(|e| e == "md") {
            files.push(path);
        }
    }
}

/// The relative targets of `[text](target)` links, without their anchors.
/// Links in code, in blocks or in a line, do not count.
fn targets(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut in_code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        let mut rest = line;
        while let Some(at) = rest.find("](") {
            rest = &rest[at + 2..];
            let before = &line[..line.len() - rest.len()];
            if !before.matches('`').count().is_multiple_of(2) {
                continue;
            }
            let Some(end) = rest.find(')') else { break };
            let target = rest[..end].split('#').next().unwrap_or("");
            if !target.is_empty() && !target.contains(':') && !target.contains(' ') {
                found.push(target);
            }
            rest = &rest[end..];
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_relative_links_outside_code_are_followed() {
        let text = "[a](b.md#x) and [c](https://d.e) `x` [`f`](g/h.rs) `[A]([a-z])`\n```\n[no](no.md)\n```\n[anchor](#here)";
        assert_eq!(targets(text), ["b.md", "g/h.rs"]);
    }
}
