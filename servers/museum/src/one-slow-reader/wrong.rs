//! Echo with a thread for each connection, which reads, and one thread that sends the replies of all connections.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, mpsc};
use std::thread;

use crate::threads::each_connection;
use crate::{ExampleOptions, stop_at_once};

type Reply = (Arc<TcpStream>, Vec<u8>);

pub(crate) fn serve(options: &ExampleOptions) -> io::Result<()> {
    stop_at_once()?;
    let replies = sender();
    each_connection(options, move |stream| {
        let stream = Arc::new(stream);
        let mut buffer = [0; 16 * 1024];
        loop {
            let count = (&*stream).read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            let reply = (Arc::clone(&stream), buffer[..count].to_vec());
            replies.send(reply).map_err(io::Error::other)?;
        }
    })
}

/// Starts a thread that sends the replies in its queue, and returns the queue.
fn sender() -> mpsc::SyncSender<Reply> {
    let (replies, queue) = mpsc::sync_channel::<Reply>(4);
    thread::spawn(move || {
        for (stream, reply) in queue {
            // A peer that has left gets no more replies.
            let _ = (&*stream).write_all(&reply);
        }
    });
    replies
}
