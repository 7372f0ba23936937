//! Runs one server of the museum of mistakes: servers that are wrong on purpose, and that `check` must catch. The pages in
//! `docs/src/museum` explain them.
//!
//! ```console
//! $ cargo run --release --example museum -- --help
//! $ cargo run --release -- check --with 'wrong=target/release/examples/museum short-write --port {port}' --guarantees exact
//! ```
fn main() -> std::process::ExitCode {
    museum::main()
}
