//! What every server promises, checked on this one.

contract::suite! { coroutines: server_coroutines::MODELS[0] }
