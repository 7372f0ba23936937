//! The `samewire` command.
fn main() -> std::process::ExitCode {
    samewire::main()
}
