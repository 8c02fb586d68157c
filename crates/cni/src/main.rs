#![forbid(unsafe_code)]
//! The plugin as a container runtime starts it: once for each command, and gone.

fn main() -> std::process::ExitCode {
    outrigger_cni::main()
}
