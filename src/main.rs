//! The `caskfs` binary: hands the arguments to the command line layer and exits with its code.

use std::process::ExitCode;

use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    caskfs::cli::run(std::env::args_os())
}
