#![forbid(unsafe_code)]
//! The CNI plugin as the scenarios install it.

fn main() -> std::process::ExitCode {
    outrigger_cni::main()
}
