//! Registry of the models. A new server crate is one line here; it then appears in every command, test and bench.

use contract::Model;

/// Returns all models in the order of the tables: from the simplest to the most elaborate.
pub fn models() -> impl Iterator<Item = &'static Model> {
    [
        server_serial::MODELS,
        server_fork::MODELS,
        server_prefork::MODELS,
        server_threads::MODELS,
        server_pool::MODELS,
        server_spin::MODELS,
        server_select::MODELS,
        server_poll::MODELS,
        server_mio::MODELS,
        server_mio_pool::MODELS,
        server_sharded::MODELS,
        server_coroutines::MODELS,
        server_tokio::MODELS,
        server_async_std::MODELS,
        server_smol::MODELS,
        server_uring::MODELS,
        server_compio::MODELS,
    ]
    .into_iter()
    .flatten()
}

/// Returns the model with the given name.
///
/// # Errors
///
/// No model has that name; the message lists the names of all models.
pub fn find(name: &str) -> Result<&'static Model, String> {
    models().find(|model| model.name == name).ok_or_else(|| {
        let names: Vec<_> = models().map(|model| model.name).collect();
        format!("no such model; the models are {}", names.join(", "))
    })
}
