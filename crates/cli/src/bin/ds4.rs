//! `ds4`.

fn main() -> std::process::ExitCode {
    ds4_cli::ds4()
}
