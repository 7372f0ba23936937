//! What every server guarantees, checked on this one.

contract::suite! { mio_pool: server_mio_pool::MODELS[0] }
