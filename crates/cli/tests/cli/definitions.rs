//! What shells and readers are told of the arguments.

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
        ds4_conformance::golden::skipped("completions for bash, which is not on this machine");
        return;
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
    ] {
        let is_said = features.split(", ").any(|f| f == name);
        assert_eq!(is_said, is_built_in, "{name}: {ran:?}");
    }
    assert!(lines[2].starts_with("target: "), "{ran:?}");
    assert_eq!(ds4.run(["-V"]).answer().trim_end(), lines[0]);
}
