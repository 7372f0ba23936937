//! Runs the test suite of the contract on this server.

contract::suite! {
    tokio: server_tokio::MODELS[0],
    tokio_local: server_tokio::MODELS[1],
}
