//! Runs the test suite of the contract on this server.

contract::suite! {
    smol: server_smol::MODELS[0],
    smol_local: server_smol::MODELS[1],
}
