//! What every server guarantees, checked on this one.

contract::suite! { prefork: server_prefork::MODELS[0] }
