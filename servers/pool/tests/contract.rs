//! Runs the test suite of the contract on this server.

contract::suite! { pool: server_pool::MODELS[0] }
