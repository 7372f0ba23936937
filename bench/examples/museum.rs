//! Servers that are wrong on purpose: `check` must catch each. See the bug museum in the docs.
//!
//! ```console
//! $ cargo run --release --example museum -- --help
//! $ cargo run --release -- check --with 'wrong=target/release/examples/museum short-write --port {port}' --guarantees exact
//! ```
fn main() -> std::process::ExitCode {
    museum::main()
}
