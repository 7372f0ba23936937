//! Runs the test suite of the contract on this server.

contract::suite! { sharded: server_sharded::MODELS[0] }
