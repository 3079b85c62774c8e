//! `ds4-server`.

fn main() -> std::process::ExitCode {
    ds4_cli::ds4_server()
}
