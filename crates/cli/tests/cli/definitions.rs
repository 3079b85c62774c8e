//! What shells and readers are told of the arguments.

use ds4_conformance::golden::skipped;

use crate::program::Ds4;

#[test]
fn every_shell_gets_completions_that_know_the_commands() {
    let ds4 = Ds4::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = ds4.run(["completions", shell]);
        let text = ran.answer();
        for word in ["inspect", "bench", "nothink"] {
            assert!(text.contains(word), "{shell}: {word}");
        }
    }
    let server = ds4.run(["completions", "bash", "--program", "ds4-server"]);
    if cfg!(feature = "server") {
        assert!(server.answer().contains("kv-disk-dir"));
    } else {
        server.refused(&["--features server"]);
    }
}

#[cfg(unix)]
#[test]
fn bash_takes_its_completions_and_completes_a_command_with_them() {
    let ds4 = Ds4::new();
    let completions = ds4.run(["completions", "bash"]);
    std::fs::write(ds4.home().join("ds4.bash"), completions.answer()).expect("a writable home");
    let script = "source ./ds4.bash && COMP_WORDS=(ds4 insp) COMP_CWORD=1 \
                  && _ds4 ds4 insp ds4 && echo \"${COMPREPLY[@]}\"";
    let bash = std::process::Command::new("bash")
        .args(["-c", script])
        .current_dir(ds4.home())
        .output();
    let Ok(output) = bash else {
        return skipped("completions for bash, which is not on this machine");
    };
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said.trim(), "inspect", "{output:?}");
}

#[test]
fn every_command_has_a_manual_page() {
    let ds4 = Ds4::new();
    ds4.run(["man", "pages/man1"]).answer();
    let read = |name: &str| {
        let path = ds4.home().join("pages/man1").join(name);
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{name}: {e}"))
    };
    assert!(read("ds4.1").contains("Examples"));
    assert!(read("ds4-inspect.1").contains("bandwidth"));
    assert!(read("ds4-kv-list.1").contains("kv\\-disk\\-dir"));
    if cfg!(feature = "server") {
        assert!(read("ds4-server.1").contains("half\\-close\\-cancels"));
    }
}

/// The programs as `cargo install` leaves them, set up for the user, found by who looks.
#[cfg(unix)]
#[test]
fn an_installed_program_puts_completions_and_pages_where_they_are_looked_for() {
    let ds4 = Ds4::new();
    let bin = ds4.home().join(".cargo/bin");
    std::fs::create_dir_all(&bin).expect("a writable home");
    std::fs::copy(env!("CARGO_BIN_EXE_ds4"), bin.join("ds4")).expect("a copy");
    let shell = |script: &str| {
        let mut command = std::process::Command::new("bash");
        command
            .args(["--noprofile", "--norc", "-c", script])
            .current_dir(ds4.home())
            .env("HOME", ds4.home())
            .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
            .env_remove("XDG_DATA_HOME")
            .env_remove("MANPATH");
        let output = command.output().expect("bash runs");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let said = shell("ds4 setup");
    for line in ["bash: ", "zsh: ", "fpath+=(", "fish: ", "man:  "] {
        assert!(said.contains(line), "{line}: {said}");
    }
    let share = ds4.home().join(".local/share");
    let mut files = vec![
        "bash-completion/completions/ds4",
        "zsh/site-functions/_ds4",
        "fish/vendor_completions.d/ds4.fish",
    ];
    if cfg!(feature = "server") {
        files.push("bash-completion/completions/ds4-server");
    }
    for file in files {
        assert!(share.join(file).is_file(), "{file}");
    }
    let completion = "/usr/share/bash-completion/bash_completion";
    if std::path::Path::new(completion).is_file() {
        let script = format!(
            "source {completion}; _completion_loader ds4; COMP_WORDS=(ds4 insp) COMP_CWORD=1; \
             _ds4 ds4 insp ds4 && echo \"${{COMPREPLY[@]}}\""
        );
        assert_eq!(shell(&script), "inspect");
    } else {
        skipped("bash-completion, which loads completions and is not on this machine");
    }
    let page = ds4.home().join(".cargo/share/man/man1/ds4.1");
    assert!(page.is_file(), "{said}");
    match shell("command -v man").is_empty() {
        true => skipped("man, which finds manual pages and is not on this machine"),
        false => assert_eq!(shell("man -w ds4"), page.display().to_string()),
    }
    // As packages are made.
    ds4.run(["setup", "--prefix", "package"]).answer();
    for file in [
        "share/man/man1/ds4-inspect.1",
        "share/zsh/site-functions/_ds4",
    ] {
        assert!(ds4.home().join("package").join(file).is_file(), "{file}");
    }
}

#[test]
fn help_is_in_groups_and_ends_with_examples() {
    let ds4 = Ds4::new();
    let help = ds4.run(["--help"]);
    let help = help.answer();
    let at = |words: &str| {
        help.find(words)
            .unwrap_or_else(|| panic!("no {words:?}: {help}"))
    };
    let groups = [
        "Model and machine:",
        "Reply:",
        "Thinking:",
        "Output:",
        "Examples:",
    ]
    .map(at);
    assert!(groups.is_sorted(), "{help}");
    let short = ds4.run(["-h"]);
    assert!(short.answer().len() < help.len() && short.answer().contains("Examples:"));
}

#[test]
fn the_version_says_the_commit_and_what_is_built_in() {
    let ds4 = Ds4::new();
    let ran = ds4.run(["--version"]);
    let lines: Vec<&str> = ran.answer().lines().collect();
    let expected = concat!("ds4 ", env!("CARGO_PKG_VERSION"), " (");
    assert!(
        lines[0].starts_with(expected) && lines[0].ends_with(')'),
        "{ran:?}"
    );
    let features = lines[1].strip_prefix("features: ").expect("features");
    for (name, is_built_in) in [
        ("server", cfg!(feature = "server")),
        ("builtin-model", cfg!(feature = "builtin-model")),
        ("pull", cfg!(feature = "pull")),
    ] {
        let is_said = features.split(", ").any(|f| f == name);
        assert_eq!(is_said, is_built_in, "{name}: {ran:?}");
    }
    assert!(lines[2].starts_with("target: "), "{ran:?}");
    assert_eq!(ds4.run(["-V"]).answer().trim_end(), lines[0]);
}
