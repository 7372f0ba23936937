//! What every server promises, checked on this one.

contract::suite! { fork: server_fork::MODELS[0] }
