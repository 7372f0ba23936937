//! What every server promises, checked on this one.

contract::suite! { sharded: server_sharded::MODELS[0] }
