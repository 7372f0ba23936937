//! Runs the test suite of the contract on this server.

contract::suite! { threads: server_threads::MODELS[0] }
