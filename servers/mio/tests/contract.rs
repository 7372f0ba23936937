//! Runs the test suite of the contract on this server.

contract::suite! { mio: server_mio::MODELS[0] }
