//! Runs the test suite of the contract on this server.

contract::suite! { compio: server_compio::MODELS[0] }
