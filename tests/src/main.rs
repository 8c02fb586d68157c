#![forbid(unsafe_code)]
//! The `outrigger` command as the scenarios start it.

fn main() -> std::process::ExitCode {
    outrigger_cli::main()
}
