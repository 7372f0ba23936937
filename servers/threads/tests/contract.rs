//! What every server promises, checked on this one.

contract::suite! { threads: server_threads::MODELS[0] }
