//! Runs this server as a program of its own.
fn main() -> std::process::ExitCode {
    contract::cli::main(server_prefork::MODELS)
}
