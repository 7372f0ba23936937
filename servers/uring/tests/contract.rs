//! Runs the test suite of the contract on this server.

contract::suite! { uring: server_uring::MODELS[0] }
