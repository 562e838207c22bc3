//! The program: parses its arguments and maps what happened to an exit code. Everything else is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    foreman::cli::main()
}
