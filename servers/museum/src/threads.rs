//! Serves each connection in a thread of its own, for examples whose mistake is in the conversation.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::{ExampleOptions, listen};

/// Runs `converse` in a thread of its own for each connection. An error ends that conversation only.
pub(crate) fn each_connection<F>(options: &ExampleOptions, converse: F) -> io::Result<()>
where
    F: Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static,
{
    let converse = Arc::new(converse);
    for stream in listen(options)?.incoming() {
        let Ok(stream) = stream else {
            thread::sleep(Duration::from_millis(100));
            continue;
        };
        let converse = Arc::clone(&converse);
        thread::Builder::new().spawn(move || converse(stream))?;
    }
    Ok(())
}
