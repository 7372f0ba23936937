//! What every server promises, checked on this one.

contract::suite! { pool: server_pool::MODELS[0] }
