//! What every server guarantees, checked on this one.

contract::suite! { poll: server_poll::MODELS[0] }
