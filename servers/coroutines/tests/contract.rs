//! Runs the test suite of the contract on this server.

contract::suite! { coroutines: server_coroutines::MODELS[0] }
