//! What every server guarantees, checked on this one.

contract::suite! { spin: server_spin::MODELS[0] }
