//! What every server guarantees, checked on this one.

contract::suite! { compio: server_compio::MODELS[0] }
