//! What every server guarantees, checked on this one.

contract::suite! { sharded: server_sharded::MODELS[0] }
