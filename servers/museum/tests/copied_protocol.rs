//! Sends the same bytes through both servers of each version of `copied-protocol`.

use std::io::{self, Cursor, Read, Write};

use museum::copied_protocol::{fixed, wrong};

/// Simulated connection. Each read returns up to `piece` bytes of the input.
struct SimulatedStream {
    input: Cursor<Vec<u8>>,
    piece: usize,
    output: Vec<u8>,
}

impl Read for &mut SimulatedStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let piece = self.piece.min(buffer.len());
        self.input.read(&mut buffer[..piece])
    }
}

impl Write for &mut SimulatedStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Converse = fn(&mut SimulatedStream) -> io::Result<()>;

fn output_of_blocking_server(converse: Converse, input: &[u8], piece: usize) -> Vec<u8> {
    let input = Cursor::new(input.to_vec());
    let output = Vec::new();
    let mut stream = SimulatedStream {
        input,
        piece,
        output,
    };
    converse(&mut stream).unwrap();
    stream.output
}

fn output_of_event_loop(
    mut readable: impl FnMut(&[u8]) -> Vec<u8>,
    input: &[u8],
    piece: usize,
) -> Vec<u8> {
    let mut output: Vec<u8> = input.chunks(piece).flat_map(&mut readable).collect();
    output.extend(readable(b""));
    output
}

const INPUT: &[u8] = b"one\n\ntwo\nthe last one";

#[test]
fn copied_protocols_differ_in_the_last_line() {
    let blocking = output_of_blocking_server(|stream| wrong::converse(stream), INPUT, 4);
    let mut peer = wrong::Peer::default();
    let event_loop = output_of_event_loop(|read| peer.readable(read), INPUT, 4);
    assert_eq!(blocking, INPUT);
    assert_eq!(event_loop, b"one\n\ntwo\n");
}

#[test]
fn servers_of_one_protocol_reply_the_same_for_every_cut() {
    for piece in 1..=INPUT.len() {
        let blocking = output_of_blocking_server(|stream| fixed::converse(stream), INPUT, piece);
        let mut peer = fixed::Peer::default();
        let event_loop = output_of_event_loop(|read| peer.readable(read), INPUT, piece);
        assert_eq!(blocking, INPUT, "pieces of {piece}");
        assert_eq!(event_loop, INPUT, "pieces of {piece}");
    }
}
