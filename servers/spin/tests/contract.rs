//! Runs the test suite of the contract on this server.

contract::suite! { spin: server_spin::MODELS[0] }
