//! Finds the built-in model.

use std::path::Path;

/// The model, from the root of the project.
const MODEL: &str = "models/ds4-small-q8_0.gguf";

fn main() {
    println!("cargo::rustc-check-cfg=cfg(builtin_model)");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let model = root.join(MODEL);
    println!("cargo::rerun-if-changed={}", model.display());
    if std::env::var_os("CARGO_FEATURE_BUILTIN_MODEL").is_none() {
        return;
    }
    if model.is_file() {
        println!("cargo::rustc-cfg=builtin_model");
        println!("cargo::rustc-env=DS4_BUILTIN_MODEL={}", model.display());
    } else {
        println!("cargo::warning={MODEL} is not there: ds4 will carry no model");
    }
}
