//! What every server guarantees, checked on this one.

contract::suite! {
    smol: server_smol::MODELS[0],
    smol_local: server_smol::MODELS[1],
}
