//! The `caskfs` binary: hands the arguments to the command line layer and exits with its code.

use std::process::ExitCode;

fn main() -> ExitCode {
    caskfs::cli::run(std::env::args_os())
}
