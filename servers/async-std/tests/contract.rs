//! What every server guarantees, checked on this one.

contract::suite! { async_std: server_async_std::MODELS[0] }
