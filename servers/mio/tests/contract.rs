//! What every server promises, checked on this one.

contract::suite! { mio: server_mio::MODELS[0] }
