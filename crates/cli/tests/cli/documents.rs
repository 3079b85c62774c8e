//! Every command that the documents show works as it is written there: those that can run here run,
//! the arguments of the others are taken, and what a command of another program names is there.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ds4_conformance::golden::project_root;
use serde_json::Value;

use crate::program::{Ds4, Ran};
use crate::speaking_model;

/// Documents beside those in `docs`.
const DOCUMENTS: [&str; 5] = [
    "README.md",
    "CONTRIBUTING.md",
    "packaging/README.md",
    "models/README.md",
    "fuzz/README.md",
];
/// Beginnings of our commands whose arguments are read and which go no further, and why.
const NOT_RUN: [(&str, &str); 9] = [
    ("ds4 pull q2", "the network"),
    ("ds4 pull OWNER", "the network"),
    ("ds4 quantize", "cli/quantize.rs, with a model of some size"),
    ("ds4 imatrix", "cli/imatrix.rs, with a model of some size"),
    ("ds4 verify", "cli/verify.rs, with files of others"),
    ("ds4 eval", "cli/eval.rs, with texts of some size"),
    ("ds4 kv", "cli/kv.rs, with a folder of states"),
    (
        "ds4 bench -m speaking.gguf --backend cuda",
        "an NVIDIA device",
    ),
    ("ds4 bench --weights random", "weights of the full size"),
];
/// Programs of others, which this machine may not have.
const OTHERS: [&str; 15] = [
    "claude",
    "codex",
    "opencode",
    "pi",
    "docker",
    "sudo",
    "nvcc",
    "g++",
    "./prefill",
    "python",
    "python3",
    "hf",
    "make",
    "mkdir",
    "npm",
];

/// Lines of indented code in a document.
fn commands(document: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(document).expect("a document");
    let mut commands = Vec::new();
    let mut in_fence = false;
    let mut after_blank = true;
    for line in text.lines() {
        in_fence ^= line.trim_start().starts_with("```");
        let code = line.strip_prefix("    ").filter(|_| !in_fence);
        // Indented lines are code after an empty line or other code; elsewhere they go on a list.
        match code.filter(|_| after_blank) {
            Some(code) => commands.push(without_comment(code).to_owned()),
            None => after_blank = line.trim().is_empty(),
        }
    }
    commands
}

fn without_comment(line: &str) -> &str {
    let line = line.split_once("  #").map_or(line, |(code, _)| code);
    line.trim()
}

/// All documents, from the root of the project.
fn documents() -> Vec<PathBuf> {
    let root = project_root();
    let mut documents: Vec<PathBuf> = DOCUMENTS.iter().map(|name| root.join(name)).collect();
    let docs = std::fs::read_dir(root.join("docs")).expect("the documents");
    let docs = docs.map(|entry| entry.expect("an entry").path());
    documents.extend(docs.filter(|path| path.extension().is_some_and(|e| e == "md")));
    documents.sort();
    documents
}

/// The command with the names of a document made those of files that are there, and without the
/// parts that may be left out.
fn filled_in(command: &str) -> String {
    let mut kept = String::new();
    let mut depth = 0usize;
    for c in command.chars() {
        match c {
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            _ if depth == 0 => kept.push(c),
            _ => {}
        }
    }
    let words: Vec<&str> = kept
        .split_whitespace()
        .map(|word| match word {
            "FILE" | "MODEL" => "speaking.gguf",
            "DIR" => "folder",
            _ => word,
        })
        .collect();
    // What is written is no model.
    words
        .join(" ")
        .replace("--out speaking.gguf", "--out logits.f32")
}

/// All that may be given: the parts in brackets too, each with its value made one.
fn with_options(command: &str) -> String {
    command
        .replace(['[', ']'], "")
        .replace("HEX", "00")
        .replace("MIB", "64")
        .replace("--backend NAME", "--backend cpu")
}

fn shell(ds4: &Ds4, command: &str) -> Command {
    // The folder of the programs comes first.
    let programs = Path::new(env!("CARGO_BIN_EXE_ds4"));
    let programs = programs.parent().expect("a folder");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(programs.to_owned()).chain(std::env::split_paths(&path));
    let mut shell = Command::new("sh");
    shell
        .args(["-c", command])
        .current_dir(ds4.home())
        .env("HOME", ds4.home())
        .env("PATH", std::env::join_paths(folders).expect("a path"))
        .env_remove("DS4_MODEL")
        .env_remove("XDG_DATA_HOME")
        .env_remove("XDG_STATE_HOME")
        .stdin(Stdio::null());
    shell
}

/// Starts a server, waits until it listens, and ends it.
#[cfg(feature = "server")]
fn serves(ds4: &Ds4, command: &str) {
    use std::io::{BufRead as _, BufReader};

    let mut server = shell(ds4, &format!("exec {command} --port 0"))
        .stderr(Stdio::piped())
        .spawn()
        .expect("a shell");
    let lines = BufReader::new(server.stderr.take().expect("a pipe")).lines();
    let mut said = Vec::new();
    let listens = lines.map_while(Result::ok).any(|line| {
        let listens = line.contains("listening on http://");
        said.push(line);
        listens
    });
    // It may have ended already.
    let _ = server.kill();
    let _ = server.wait();
    assert!(listens, "{command}: {said:#?}");
}

#[cfg(not(feature = "server"))]
fn serves(_: &Ds4, _: &str) {}

/// What is there to be run: packages with their features, binaries, tests and benchmarks.
struct Workspace {
    packages: Vec<Value>,
}

impl Workspace {
    fn new() -> Workspace {
        let output = Command::new(env!("CARGO"))
            .args([
                "metadata",
                "--no-deps",
                "--offline",
                "--format-version",
                "1",
            ])
            .current_dir(project_root())
            .output()
            .expect("cargo runs");
        let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        Workspace {
            packages: metadata["packages"].as_array().expect("packages").clone(),
        }
    }

    /// Checks that the names in a command of Cargo's are those of something.
    fn knows(&self, command: &str) {
        let words: Vec<&str> = command.split_whitespace().collect();
        let value = |flag: &str| {
            let at = words.iter().position(|word| *word == flag)?;
            words.get(at + 1).copied()
        };
        if let Some(path) = value("--path") {
            assert!(project_root().join(path).is_dir(), "{command}");
        }
        let name = value("-p").or_else(|| value("--path").map(|_| "ds4-cli"));
        let Some(name) = name else {
            return;
        };
        let mut packages = self.packages.iter();
        let package = packages.find(|package| package["name"] == name);
        let package = package.unwrap_or_else(|| panic!("{command}: no package {name}"));
        if let Some(feature) = value("--features") {
            assert!(package["features"][feature].is_array(), "{command}");
        }
        let targets = package["targets"].as_array().expect("targets");
        for kind in ["bin", "test", "bench", "example"] {
            let Some(name) = value(&format!("--{kind}")) else {
                continue;
            };
            let is_it = |target: &&Value| target["name"] == name && target["kind"][0] == kind;
            assert!(targets.iter().any(|t| is_it(&t)), "{command}: no {kind}");
        }
    }
}

/// Runs one of our commands, or has its arguments read; whether it ran.
fn ours(ds4: &Ds4, name: &str, command: &str) -> bool {
    let filled = filled_in(command);
    let home = |name: &str| ds4.home().join(name);
    if let Some((_, why)) = NOT_RUN.iter().find(|(begin, _)| filled.starts_with(begin)) {
        // Arguments that are wrong are found before help is given.
        for all in [filled.clone(), with_options(command)] {
            let ran = Ran::of(
                shell(ds4, &format!("{all} --help"))
                    .output()
                    .expect("a shell"),
            );
            let is_absent = !cfg!(feature = "server") && all.starts_with("ds4-server");
            assert!(
                ran.status == Some(0) || is_absent,
                "{name}: {all} ({why}): {ran:?}"
            );
        }
        return false;
    }
    if filled.starts_with("ds4-server") {
        serves(ds4, &filled);
        return cfg!(feature = "server");
    }
    // The model of a published name, and a short answer.
    if let Some(at) = filled.find("DeepSeek-V4") {
        let name = filled[at..].split(' ').next().unwrap_or_default();
        std::fs::copy(home("speaking.gguf"), home(name)).expect("a copy");
    }
    let asks =
        filled.contains("ds4 \"") || filled.contains(" -p \"") || filled.contains("--prompt-file");
    let talks = filled == "ds4" || filled.starts_with("ds4 -m ") && !asks;
    let filled = match talks {
        true => filled.replacen("ds4", "echo /quit | ds4 chat", 1),
        false => filled,
    };
    let filled = match asks && !filled.contains(" -n ") {
        true => format!("{filled} -n 8"),
        false => filled,
    };
    // Short enough for a test.
    let filled = filled
        .replace("git diff |", "echo diff |")
        .replace("--contexts 512,2048,8192", "--contexts 64,128")
        .replace("-n 200", "-n 8")
        .replace("-n 64", "-n 4")
        .replace("--contexts 512", "--contexts 64");
    let ran = Ran::of(shell(ds4, &filled).output().expect("a shell"));
    assert_eq!(ran.status, Some(0), "{name}: {command}: {ran:?}");
    true
}

#[cfg(unix)]
#[test]
fn every_command_of_the_documents_that_can_run_here_runs() {
    let workspace = Workspace::new();
    let (mut n_run, mut n_seen) = (0, 0);
    for document in documents() {
        let name = document.file_name().expect("a name").to_string_lossy();
        // One home for a document: what it shows first may be needed by what it shows later.
        let ds4 = Ds4::new();
        speaking_model::write(ds4.home());
        let home = |name: &str| ds4.home().join(name);
        std::fs::write(home("question.txt"), "Hello").expect("a writable home");
        std::fs::write(home("ids.json"), "[0, 5, 107]").expect("a writable home");
        std::fs::create_dir(home("folder")).expect("a writable home");
        for command in commands(&document) {
            n_seen += 1;
            let first = command.split(' ').find(|word| !word.contains('='));
            let first = first.unwrap_or_default();
            if command.contains("ds4 ") && !OTHERS.contains(&first) && first != "cargo"
                || ["ds4", "ds4-server"].contains(&first)
            {
                n_run += usize::from(ours(&ds4, &name, &command));
            } else if first == "cargo" {
                workspace.knows(&command);
            } else if let Some(path) =
                Some(first).filter(|p| p.contains('/') && !p.starts_with("./"))
            {
                // A script of ours.
                assert!(project_root().join(path).is_file(), "{name}: {command}");
            } else if first == "export" || first == "mkdir" {
                let ran = Ran::of(shell(&ds4, &command).output().expect("a shell"));
                assert_eq!(ran.status, Some(0), "{name}: {command}: {ran:?}");
                n_run += 1;
            } else {
                assert!(OTHERS.contains(&first), "{name}: what is {command}?");
                let ran = Ran::of(
                    shell(&ds4, &format!("true || {{ {command}; }}"))
                        .output()
                        .expect("a shell"),
                );
                assert_eq!(
                    ran.status,
                    Some(0),
                    "{name}: {command} is no shell: {ran:?}"
                );
                for word in command
                    .split(' ')
                    .filter(|word| word.starts_with("crates/"))
                {
                    assert!(project_root().join(word).is_file(), "{name}: {command}");
                }
            }
        }
    }
    let least = 18 + 3 * usize::from(cfg!(feature = "server"));
    assert!(n_run >= least && n_seen >= 60, "{n_run} of {n_seen} ran");
}

#[test]
fn the_settings_of_agents_are_whole_documents() {
    let text = std::fs::read_to_string(project_root().join("docs/agents.md")).expect("a document");
    let blocks: Vec<&str> = text
        .split("```json\n")
        .skip(1)
        .filter_map(|rest| rest.split("\n```").next())
        .collect();
    assert!(blocks.len() >= 2, "{blocks:?}");
    for block in blocks {
        let settings: Value =
            serde_json::from_str(block).unwrap_or_else(|e| panic!("{e}: {block}"));
        assert!(
            settings.to_string().contains("http://127.0.0.1:8000/v1"),
            "{block}"
        );
    }
}
