//! What every server guarantees, checked on this one.

contract::suite! { threads: server_threads::MODELS[0] }
