//! The program `apscli`, of which `APSCLI_BROKEN_RULE` breaks a rule: only built with the feature
//! `broken-rules`, under a name of its own, and started by `broken.rs` alone.

use std::process::ExitCode;

fn main() -> ExitCode {
    apscli::cli::main(std::env::args_os().collect())
}
