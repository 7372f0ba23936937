//! What every server guarantees, checked on this one.

contract::suite! { coroutines: server_coroutines::MODELS[0] }
