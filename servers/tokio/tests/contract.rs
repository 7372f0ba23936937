//! What every server guarantees, checked on this one.

contract::suite! {
    tokio: server_tokio::MODELS[0],
    tokio_local: server_tokio::MODELS[1],
}
