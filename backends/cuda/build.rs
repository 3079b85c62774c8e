//! Puts machine code that `cargo xtask kernels` made into the program: every `.cubin` of the folder
//! that `DS4_CUDA_CUBINS` names. Without it the program compiles kernels when it first needs them.

use std::fmt::Write;
use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-env-changed=DS4_CUDA_CUBINS");
    println!("cargo::rerun-if-changed=build.rs");
    let mut list = String::from("pub(super) static CUBINS: &[(&str, &[u8])] = &[\n");
    if let Some(folder) = std::env::var_os("DS4_CUDA_CUBINS").map(PathBuf::from) {
        println!("cargo::rerun-if-changed={}", folder.display());
        let entries = std::fs::read_dir(&folder)
            .unwrap_or_else(|e| panic!("DS4_CUDA_CUBINS={}: {e}", folder.display()));
        let mut paths: Vec<PathBuf> = entries
            .map(|entry| entry.expect("a readable folder").path())
            .filter(|path| path.extension().is_some_and(|e| e == "cubin"))
            .collect();
        paths.sort();
        for path in paths {
            let path = path.canonicalize().expect("a file of the folder");
            let key = path.file_stem().expect("a name").to_string_lossy();
            writeln!(
                list,
                "({key:?}, include_bytes!({:?})),",
                path.display().to_string()
            )
            .expect("a string grows");
        }
    }
    list.push_str("];\n");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    std::fs::write(out.join("embedded.rs"), list).expect("the output folder is writable");
}
