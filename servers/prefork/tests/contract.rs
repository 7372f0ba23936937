//! Runs the test suite of the contract on this server.

contract::suite! { prefork: server_prefork::MODELS[0] }
