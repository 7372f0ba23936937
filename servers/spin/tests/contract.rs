//! What every server promises, checked on this one.

contract::suite! { spin: server_spin::MODELS[0] }
