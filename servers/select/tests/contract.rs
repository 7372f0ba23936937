//! Runs the test suite of the contract on this server.

contract::suite! { select: server_select::MODELS[0] }
