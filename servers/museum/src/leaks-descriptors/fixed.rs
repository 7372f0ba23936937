//! Who has left, in whatever way, is taken from the list of those who are there.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::process;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::{ExampleOptions, listen};

/// Who is there: to be told goodbye at a stop.
#[derive(Clone, Default)]
struct Guests(Arc<Mutex<HashMap<usize, TcpStream>>>);

/// A thread for each peer.
pub(crate) fn serve(options: &ExampleOptions) -> io::Result<()> {
    let guests = Guests::default();
    guests.clone().part_at_a_signal()?;
    for (number, stream) in listen(options)?.incoming().enumerate() {
        let stream = stream?;
        guests.lock().insert(number, stream.try_clone()?);
        let guests = guests.clone();
        thread::spawn(move || attend(number, &stream, &guests));
    }
    Ok(())
}

fn attend(number: usize, stream: &TcpStream, guests: &Guests) -> io::Result<()> {
    let end = converse(stream);
    guests.lock().remove(&number);
    end
}

/// A line in, the same line out. The last one needs no end.
fn converse(mut stream: &TcpStream) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        stream.write_all(&line)?;
        line.clear();
    }
    Ok(())
}

impl Guests {
    fn lock(&self) -> MutexGuard<'_, HashMap<usize, TcpStream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn part_at_a_signal(self) -> io::Result<()> {
        let mut signals = Signals::new([SIGTERM, SIGINT])?;
        thread::spawn(move || {
            signals.forever().next();
            for stream in self.lock().values() {
                let _ = stream.shutdown(Shutdown::Both);
            }
            process::exit(0);
        });
        Ok(())
    }
}
