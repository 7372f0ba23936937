//! The same bytes through both servers of an example.

use std::io::{self, Cursor, Read, Write};

use museum::copied_protocol::{fixed, wrong};

/// What comes from a peer, in pieces of so many bytes, and what is sent to it.
struct Wire {
    input: Cursor<Vec<u8>>,
    piece: usize,
    output: Vec<u8>,
}

impl Read for &mut Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let piece = self.piece.min(buffer.len());
        self.input.read(&mut buffer[..piece])
    }
}

impl Write for &mut Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Converse = fn(&mut Wire) -> io::Result<()>;

fn said_by_the_one_that_blocks(converse: Converse, input: &[u8], piece: usize) -> Vec<u8> {
    let input = Cursor::new(input.to_vec());
    let output = Vec::new();
    let mut wire = Wire {
        input,
        piece,
        output,
    };
    converse(&mut wire).unwrap();
    wire.output
}

fn said_by_the_event_loop(
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
fn the_copies_differ_in_the_last_line() {
    let blocks = said_by_the_one_that_blocks(|wire| wrong::converse(wire), INPUT, 4);
    let mut peer = wrong::Peer::default();
    let event_loop = said_by_the_event_loop(|read| peer.readable(read), INPUT, 4);
    assert_eq!(blocks, INPUT);
    assert_eq!(event_loop, b"one\n\ntwo\n");
}

#[test]
fn two_servers_of_one_protocol_say_the_same_however_it_is_cut() {
    for piece in 1..=INPUT.len() {
        let blocks = said_by_the_one_that_blocks(|wire| fixed::converse(wire), INPUT, piece);
        let mut peer = fixed::Peer::default();
        let event_loop = said_by_the_event_loop(|read| peer.readable(read), INPUT, piece);
        assert_eq!(blocks, INPUT, "pieces of {piece}");
        assert_eq!(event_loop, INPUT, "pieces of {piece}");
    }
}
