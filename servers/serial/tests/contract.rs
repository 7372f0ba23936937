//! What every server guarantees, checked on this one.

contract::suite! { serial: server_serial::MODELS[0] }
