//! Runs the test suite of the contract on this server.

contract::suite! { async_std: server_async_std::MODELS[0] }
