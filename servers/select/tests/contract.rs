//! What every server guarantees, checked on this one.

contract::suite! { select: server_select::MODELS[0] }
