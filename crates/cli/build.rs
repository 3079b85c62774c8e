//! Finds the built-in model, and what the program says of itself.

use std::path::Path;
use std::process::Command;

/// The model, from the root of the project.
const MODEL: &str = "models/ds4-small-q8_0.gguf";
/// The features that `--version` tells of, as in `Cargo.toml`.
const FEATURES: [&str; 4] = ["builtin-model", "pull", "server", "wgpu"];

fn main() {
    println!("cargo::rustc-check-cfg=cfg(builtin_model)");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    say_version(&root);
    let model = root.join(MODEL);
    println!("cargo::rerun-if-changed={}", model.display());
    if !has_feature("builtin-model") {
        return;
    }
    if model.is_file() {
        println!("cargo::rustc-cfg=builtin_model");
        println!("cargo::rustc-env=DS4_BUILTIN_MODEL={}", model.display());
    } else {
        println!("cargo::warning={MODEL} is not there: ds4 will carry no model");
    }
}

fn has_feature(name: &str) -> bool {
    let variable = name.to_uppercase().replace('-', "_");
    std::env::var_os(format!("CARGO_FEATURE_{variable}")).is_some()
}

/// What `--version` says: the commit, the features, and the target.
fn say_version(root: &Path) {
    let features: Vec<&str> = FEATURES.into_iter().filter(|f| has_feature(f)).collect();
    let features = match features.is_empty() {
        true => "none".to_owned(),
        false => features.join(", "),
    };
    println!("cargo::rustc-env=DS4_FEATURES={features}");
    let target = std::env::var("TARGET").unwrap_or_default();
    println!("cargo::rustc-env=DS4_TARGET={target}");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=DS4_COMMIT");
    let commit = match std::env::var("DS4_COMMIT") {
        Ok(commit) if !commit.is_empty() => commit,
        // A build for tests says no commit, so that a commit does not build everything again.
        _ if std::env::var("PROFILE").as_deref() != Ok("release") => "development".to_owned(),
        _ => commit_of(root).unwrap_or_else(|| "unknown commit".to_owned()),
    };
    println!("cargo::rustc-env=DS4_COMMIT={commit}");
}

/// The commit that is checked out; `None` where there is no repository, or no git.
fn commit_of(root: &Path) -> Option<String> {
    let git = |args: &[&str]| {
        let output = Command::new("git").arg("-C").arg(root).args(args).output();
        let output = output.ok().filter(|o| o.status.success())?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
    };
    // Everything that moves the head writes a line here.
    let log = root.join(git(&["rev-parse", "--git-path", "logs/HEAD"])?);
    println!("cargo::rerun-if-changed={}", log.display());
    git(&["rev-parse", "--short=12", "HEAD"])
}
