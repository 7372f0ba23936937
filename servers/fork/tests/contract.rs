//! Runs the test suite of the contract on this server.

contract::suite! { fork: server_fork::MODELS[0] }
