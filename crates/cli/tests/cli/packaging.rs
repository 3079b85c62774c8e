//! What packages are made of: the unit, the image and the release script say what the programs take.
#![cfg(feature = "server")]

use std::process::Command;

use ds4_conformance::golden::{project_root, skipped};

use crate::program::Ran;

fn read(name: &str) -> String {
    std::fs::read_to_string(project_root().join(name)).expect("a file of the project")
}

/// The value of a line `name=value`.
fn value<'t>(text: &'t str, name: &str) -> &'t str {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {text}"))
}

/// Has the arguments of the server read; wrong ones are found before help is given.
#[track_caller]
fn are_taken(flags: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ds4-server"));
    command.args(flags).arg("--help");
    let ran = Ran::of(command.output().expect("it starts"));
    assert_eq!(ran.status, Some(0), "{flags:?}: {ran:?}");
}

#[test]
fn the_unit_of_systemd_is_one_and_its_command_is_the_servers() {
    let unit = read("packaging/ds4-server.service");
    let start = value(&unit, "ExecStart=");
    let (program, flags) = start.split_once(' ').expect("flags");
    assert!(program.ends_with("/ds4-server"));
    let more = value(&unit, "# DS4_MODEL=")
        .split_once("DS4_FLAGS=")
        .expect("flags")
        .1;
    let flags = flags.replace("${STATE_DIRECTORY}", "/var/lib/ds4");
    let flags = flags.replace("$DS4_FLAGS", more);
    are_taken(&flags.split(' ').collect::<Vec<_>>());

    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path().join("ds4-server.service");
    let tried = unit.replace(program, env!("CARGO_BIN_EXE_ds4-server"));
    std::fs::write(&here, tried).expect("a writable folder");
    let verified = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&here)
        .output();
    let Ok(verified) = verified else {
        return skipped("the unit, for want of systemd-analyze, which reads it");
    };
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(
        verified.status.success() && !said.contains("ds4-server.service"),
        "{said}"
    );
}

#[test]
fn the_image_is_built_as_the_release_is_and_starts_what_there_is() {
    let image = read("packaging/Containerfile");
    let entry = value(&image, "ENTRYPOINT ");
    let entry: Vec<String> = serde_json::from_str(entry).expect("a list");
    assert_eq!(entry[0], "/ds4-server");
    let mut flags: Vec<&str> = entry[1..].iter().map(String::as_str).collect();
    flags.push("--without-key");
    are_taken(&flags);
    let release = read("packaging/release");
    for flag in [
        "-C strip=symbols",
        "-C target-feature=+crt-static",
        "--cfg getrandom_backend=\"linux_getrandom\"",
    ] {
        assert!(image.contains(flag) && release.contains(flag), "{flag}");
    }
    // The compiler that the image names is new enough.
    let least = value(&read("Cargo.toml"), "rust-version = ")
        .trim_matches('"')
        .to_owned();
    assert!(image.contains(&format!("rust:{least}")), "{least}");
}
