//! Runs the test suite of the contract on this server.

contract::suite! { serial: server_serial::MODELS[0] }
