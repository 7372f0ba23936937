//! What every server guarantees, checked on this one.

contract::suite! { fork: server_fork::MODELS[0] }
