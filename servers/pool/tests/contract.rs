//! What every server guarantees, checked on this one.

contract::suite! { pool: server_pool::MODELS[0] }
