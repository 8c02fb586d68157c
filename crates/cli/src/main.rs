#![forbid(unsafe_code)]
//! The `outrigger` command.

fn main() -> std::process::ExitCode {
    outrigger_cli::main()
}
