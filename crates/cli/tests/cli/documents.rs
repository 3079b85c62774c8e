//! Every command that the documents show works as it is written there.

use std::process::{Command, Stdio};

use ds4_conformance::golden::project_root;

use crate::program::{Ds4, Ran};
use crate::speaking_model;

/// Documents whose commands users copy.
const DOCUMENTS: [&str; 3] = ["README.md", "docs/cli.md", "packaging/README.md"];
/// Beginnings of commands that are not run here, and why.
const NOT_RUN: [(&str, &str); 13] = [
    ("hf download", "the network"),
    ("cargo", "the gate builds and tests"),
    ("packaging/release", "builds for minutes"),
    ("docker", "needs a container engine"),
    ("sudo", "changes the machine"),
    ("ds4 logits", "cli/logits.rs, with ids of its model"),
    ("ds4 kv", "cli/kv.rs, with a folder of states"),
    ("ds4 pull", "the network"),
    ("ds4 quantize", "needs a model of some size"),
    ("ds4 imatrix", "needs a model of some size"),
    ("ds4 verify", "needs files of others"),
    ("ds4 eval", "needs files of others"),
    ("make", "not a command of this project"),
];

/// Lines of indented code in a document.
fn commands(document: &str) -> Vec<String> {
    let text = std::fs::read_to_string(project_root().join(document)).expect("a document");
    let mut commands = Vec::new();
    let mut in_fence = false;
    let mut after_blank = true;
    for line in text.lines() {
        in_fence ^= line.trim_start().starts_with("```");
        let code = line.strip_prefix("    ").filter(|_| !in_fence);
        // Indented lines are code after an empty line or other code; elsewhere they go on a list.
        match code.filter(|_| after_blank) {
            Some(code) => commands.push(code.trim().to_owned()),
            None => after_blank = line.trim().is_empty(),
        }
    }
    commands
}

/// The command with the names of a document made those of files that are there.
fn filled_in(command: &str) -> String {
    let words: Vec<&str> = command
        .split(' ')
        .map(|word| match word {
            "FILE" | "MODEL" => "speaking.gguf",
            "DIR" => "folder",
            _ => word,
        })
        .collect();
    words.join(" ")
}

fn shell(ds4: &Ds4, command: &str) -> Command {
    // The folder of the programs comes first.
    let programs = std::path::Path::new(env!("CARGO_BIN_EXE_ds4"))
        .parent()
        .expect("a folder");
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
    let _ = server.kill();
    let _ = server.wait();
    assert!(listens, "{command}: {said:#?}");
}

#[cfg(unix)]
#[test]
fn every_command_of_the_documents_that_can_run_here_runs() {
    let mut n_run = 0;
    for document in DOCUMENTS {
        // One home for a document: what it shows first may be needed by what it shows later.
        let ds4 = Ds4::new();
        speaking_model::write(ds4.home());
        let home = |name: &str| ds4.home().join(name);
        std::fs::write(home("question.txt"), "Hello").expect("a writable home");
        std::fs::create_dir(home("folder")).expect("a writable home");
        for command in commands(document) {
            let filled = filled_in(&command);
            if NOT_RUN.iter().any(|(begin, _)| filled.starts_with(begin)) {
                continue;
            }
            if filled.starts_with("ds4-server") {
                #[cfg(feature = "server")]
                serves(&ds4, &filled);
                n_run += usize::from(cfg!(feature = "server"));
                continue;
            }
            // The model of a published name, and a short answer.
            let filled = match filled.find("DeepSeek-V4") {
                Some(at) => {
                    let name = filled[at..].split(' ').next().unwrap_or_default();
                    std::fs::copy(home("speaking.gguf"), home(name)).expect("a copy");
                    filled
                }
                None => filled,
            };
            let asks = filled.contains("ds4 \"")
                || filled.contains("ds4 -p ")
                || filled.contains(" -p \"");
            let talks = filled == "ds4" || filled.starts_with("ds4 -m ") && !asks;
            let filled = match talks {
                true => filled.replacen("ds4", "echo /quit | ds4 chat", 1),
                false => filled,
            };
            let filled = match asks && !filled.contains(" -n ") {
                true => format!("{filled} -n 8"),
                false => filled,
            };
            let filled = filled.replace("git diff |", "echo diff |");
            let bench = filled.replace("512,2048,8192", "64,128");
            let ran = Ran::of(shell(&ds4, &bench).output().expect("a shell"));
            assert_eq!(ran.status, Some(0), "{document}: {command}: {ran:?}");
            n_run += 1;
        }
    }
    let least = 8 + 2 * usize::from(cfg!(feature = "server"));
    assert!(n_run >= least, "{n_run} commands were found");
}
