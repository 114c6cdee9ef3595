//! The program `apscli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    apscli::cli::main(std::env::args_os().collect())
}
