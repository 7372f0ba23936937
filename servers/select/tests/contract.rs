//! What every server promises, checked on this one.

contract::suite! { select: server_select::MODELS[0] }
