//! What every server guarantees, checked on this one.

contract::suite! { uring: server_uring::MODELS[0] }
