//! What ARCHITECTURE.md claims of the tree and a program can see: which crates know
//! which, who reads the environment, where `unsafe` is, how long a file is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Most lines of a file that is no table.
const MAX_LINES: usize = 700;

/// Files that are tables from end to end.
const TABLES: &[&str] = &[];

/// Which of our crates a crate may depend on, tests aside.
const MAY_KNOW: &[(&str, &[&str])] = &[
    ("crates/formats", &[]),
    ("crates/text", &[]),
    ("crates/model", &["ds4-formats"]),
    (
        "crates/engine",
        &[
            "ds4-formats",
            "ds4-text",
            "ds4-model",
            "ds4-cpu",
            "ds4-cuda",
            "ds4-wgpu",
        ],
    ),
    ("crates/server", &["ds4-engine", "ds4-text", "ds4-model"]),
    ("backends/cpu", &["ds4-formats", "ds4-model"]),
    ("backends/cuda", &["ds4-formats", "ds4-model"]),
    ("backends/wgpu", &["ds4-formats", "ds4-model"]),
    ("backends/conformance", &["ds4-formats", "ds4-model"]),
];

/// Where `unsafe` may be: the memory map and what is said of its lost pages, SIMD and devices, and
/// what is asked of the system about memory.
const UNSAFE: &[&str] = &[
    "crates/formats/src/bytes.rs",
    "crates/formats/src/lost.rs",
    "crates/formats/src/gguf/",
    "crates/engine/src/memory.rs",
    "backends/cpu/",
    "backends/cuda/",
    "backends/wgpu/",
];

/// Folders below `cli`, where the environment is not read.
const BELOW_CLI: &[&str] = &[
    "crates/formats/src",
    "crates/text/src",
    "crates/model/src",
    "crates/engine/src",
    "crates/server/src",
    "backends/cpu/src",
    "backends/cuda/src",
    "backends/wgpu/src",
    "backends/conformance/src",
];

pub(crate) fn run() -> ExitCode {
    let root = crate::root();
    let mut found = Vec::new();
    for (folder, may_know) in MAY_KNOW {
        if let Ok(manifest) = fs::read_to_string(root.join(folder).join("Cargo.toml")) {
            let unexpected = dependencies(&manifest)
                .into_iter()
                .filter(|name| !may_know.contains(&name.as_str()));
            found.extend(unexpected.map(|name| format!("{folder}: depends on {name}")));
        }
    }
    for path in sources(&root) {
        let Ok(text) = fs::read_to_string(root.join(&path)) else {
            continue;
        };
        found.extend(look(&path, &text));
    }
    for line in &found {
        eprintln!("{line}");
    }
    match found.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// What is untidy in a source file.
fn look(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let n_lines = text.lines().count();
    if n_lines > MAX_LINES && !TABLES.contains(&path) {
        found.push(format!(
            "{path}: {n_lines} lines, expected at most {MAX_LINES}: part it by what it does"
        ));
    }
    let code = |line: &str| line.split("//").next().unwrap_or_default().to_owned();
    let below_cli = BELOW_CLI.iter().any(|folder| path.starts_with(folder));
    let may_be_unsafe = UNSAFE.iter().any(|place| path.starts_with(place));
    // Tests stand at the end of a file.
    let lines = text.lines().take_while(|line| *line != "#[cfg(test)]");
    for (at, line) in lines.enumerate() {
        let line = code(line);
        let place = format!("{path}:{}", at + 1);
        if below_cli
            && ["env::var", "env::vars", "env::var_os"]
                .iter()
                .any(|w| line.contains(w))
        {
            found.push(format!(
                "{place}: reads the environment, which `cli` passes down"
            ));
        }
        let is_unsafe = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"]
            .iter()
            .any(|word| line.contains(word));
        if is_unsafe && !may_be_unsafe && path.contains("/src/") && !path.starts_with("xtask/") {
            found.push(format!("{place}: `unsafe` where ARCHITECTURE.md has none"));
        }
    }
    found
}

/// Our crates among the dependencies of a manifest, those of tests and builds left out.
fn dependencies(manifest: &str) -> Vec<String> {
    let mut section = "";
    let mut found = Vec::new();
    for line in manifest.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        } else if section.ends_with("dependencies")
            && !section.contains("dev-")
            && !section.contains("build-")
            && line.starts_with("ds4-")
        {
            let end = line.find(['.', ' ', '=']).unwrap_or(line.len());
            found.push(line[..end].to_owned());
        }
    }
    found
}

/// Rust files of the project, relative to its root.
fn sources(root: &Path) -> Vec<String> {
    let mut folders: Vec<PathBuf> = ["crates", "backends", "xtask", "fuzz"]
        .iter()
        .map(|name| root.join(name))
        .collect();
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name();
            if path.is_dir() {
                if name != "target" && name != "corpus" {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "rs")
                && let Ok(relative) = path.strip_prefix(root)
            {
                found.push(relative.to_string_lossy().replace('\\', "/"));
            }
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dependencies_of_the_library_count() {
        let manifest = "[package]\nname = \"x\"\n[dependencies]\nds4-model.workspace = true\n\
                        half = \"2\"\nds4-cpu = { path = \"y\" }\n[dev-dependencies]\n\
                        ds4-conformance.workspace = true\n";
        assert_eq!(dependencies(manifest), ["ds4-model", "ds4-cpu"]);
    }

    #[test]
    fn what_is_untidy_is_named_with_its_place() {
        let text = "let x = 1;\nlet y = std::env::var(\"HOME\");\n// unsafe { }\nunsafe { f() }\n";
        let found = look("crates/server/src/a.rs", text);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("crates/server/src/a.rs:2: reads"));
        assert!(found[1].starts_with("crates/server/src/a.rs:4: `unsafe`"));
        assert!(look("backends/cpu/src/a.rs", "unsafe { f() }").is_empty());
        assert!(look("crates/cli/src/a.rs", "std::env::var(\"HOME\")").is_empty());
        let tests = "fn f() {}\n#[cfg(test)]\nmod tests { unsafe { std::env::var } }\n";
        assert!(look("crates/text/src/a.rs", tests).is_empty());
        let long = "x\n".repeat(MAX_LINES + 1);
        assert_eq!(look("xtask/src/a.rs", &long).len(), 1);
    }
}
