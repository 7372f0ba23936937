//! Runs the test suite of the contract on this server.

contract::suite! { poll: server_poll::MODELS[0] }
