//! Runs the test suite of the contract on this server.

contract::suite! { mio_pool: server_mio_pool::MODELS[0] }
