//! What every server guarantees, checked on this one.

contract::suite! { mio: server_mio::MODELS[0] }
