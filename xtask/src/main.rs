//! Project chores, run as `cargo xtask CHORE`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

mod kernels;
mod links;
mod load;
mod notices;
mod siege;
mod tidy;

const USAGE: &str = "\
usage: cargo xtask links    check that relative links in Markdown files lead somewhere
       cargo xtask tidy     check what ARCHITECTURE.md claims of crates, files and `unsafe`
       cargo xtask notices DIR [--target PLATFORM]
                            write the bill of materials and the licences of a release
       cargo xtask load [--clients N] [--minutes N] [--seed N] [--url URL [--pid PID]] [-- FLAGS]
                            drive a server as many clients would, some of them badly, and say
                            what it did; without --url it builds ds4-server and starts it with
                            FLAGS (default: --parallel 4 --ctx 8192)
       cargo xtask siege [--server PROGRAM] [--only bodies|schemas|connections|signals] [-- FLAGS]
                            attack a server that is started for it, and say what it took; without
                            --server it builds ds4-server. FLAGS default to --ctx 8192 --parallel 2";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("links") => links::run(),
        Some("tidy") => tidy::run(),
        Some("notices") => match notices::run(args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("xtask notices: {error}");
                ExitCode::FAILURE
            }
        },
        Some("load") => match load::run(args) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("xtask load: {error}");
                ExitCode::from(2)
            }
        },
        Some("siege") => match siege::run(args) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("xtask siege: {error}");
                ExitCode::from(2)
            }
        },
        Some("kernels") => match kernels::run(args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("xtask kernels: {error}");
                ExitCode::FAILURE
            }
        },
        _ => {
            eprintln!("{USAGE}\n{}", kernels::USAGE);
            ExitCode::from(2)
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the root")
        .to_path_buf()
}
