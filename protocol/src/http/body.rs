//! What comes behind a head. Nobody wants it here, but where it ends the next request begins.

use super::response::Status;

/// The longest line with a chunk's size, in bytes and with its end; extensions make it long, and nobody uses them.
const SIZE_LINE: usize = 256;

/// All that may come behind the last chunk, in bytes.
const TRAILERS: usize = 4 * 1024;

/// What is still to come of a request's body.
#[derive(Debug, Clone, Copy)]
pub(super) enum Body {
    /// So many bytes.
    Length(u64),
    /// A chunk's size; all chunks so far had `taken` bytes (RFC 9112, 7.1).
    Size { taken: u64 },
    /// So many bytes of a chunk, then CR LF.
    Chunk { left: u64, taken: u64 },
    /// Fields, up to an empty line.
    Trailers { taken: usize },
}

impl Body {
    pub(super) const NONE: Body = Body::Length(0);
    pub(super) const CHUNKED: Body = Body::Size { taken: 0 };

    pub(super) fn is_over(&self) -> bool {
        matches!(self, Body::Length(0))
    }

    /// Whether that is known, without looking at it.
    pub(super) fn is_longer_than(&self, most: usize) -> bool {
        matches!(self, Body::Length(length) if *length > most as u64)
    }

    /// Goes through as much of it as is there, and says how many bytes that were.
    pub(super) fn skip(&mut self, input: &[u8], most: usize) -> Result<usize, Status> {
        let mut rest = input;
        while !self.is_over() {
            let skipped = self.skip_part(rest, most)?;
            if skipped == 0 {
                break;
            }
            rest = &rest[skipped..];
        }
        Ok(input.len() - rest.len())
    }

    fn skip_part(&mut self, input: &[u8], most: usize) -> Result<usize, Status> {
        match self {
            Body::Length(left) => {
                let count = at_most(*left, input.len());
                *left -= count as u64;
                Ok(count)
            }
            Body::Size { taken } => {
                let window = &input[..input.len().min(SIZE_LINE)];
                // The parser takes no digits for a zero, and such a zero would end the body.
                if window.first().is_some_and(|byte| !byte.is_ascii_hexdigit()) {
                    return Err(Status::BadRequest);
                }
                match httparse::parse_chunk_size(window) {
                    Ok(httparse::Status::Complete((end, size))) => {
                        // It also takes a line end inside of an extension, where another server may see two lines.
                        if memchr::memchr(b'\n', &window[..end - 1]).is_some() {
                            return Err(Status::BadRequest);
                        }
                        let taken = taken.saturating_add(size);
                        if taken > most as u64 {
                            return Err(Status::ContentTooLarge);
                        }
                        *self = match size {
                            0 => Body::Trailers { taken: 0 },
                            left => Body::Chunk { left, taken },
                        };
                        Ok(end)
                    }
                    Ok(httparse::Status::Partial) if window.len() < SIZE_LINE => Ok(0),
                    _ => Err(Status::BadRequest),
                }
            }
            Body::Chunk { left: 0, taken } => match input {
                [b'\r', b'\n', ..] => {
                    *self = Body::Size { taken: *taken };
                    Ok(2)
                }
                [] | [b'\r'] => Ok(0),
                _ => Err(Status::BadRequest),
            },
            Body::Chunk { left, .. } => {
                let count = at_most(*left, input.len());
                *left -= count as u64;
                Ok(count)
            }
            Body::Trailers { taken } => {
                let line = memchr::memchr(b'\n', input).map(|end| &input[..=end]);
                if *taken + line.unwrap_or(input).len() > TRAILERS {
                    return Err(Status::FieldsTooLarge);
                }
                match line {
                    None => Ok(0),
                    Some(line) if !is_plain(line) => Err(Status::BadRequest),
                    Some(line) => {
                        *taken += line.len();
                        if matches!(line, b"\n" | b"\r\n") {
                            *self = Body::NONE;
                        }
                        Ok(line.len())
                    }
                }
            }
        }
    }
}

/// Whether nobody can see another line's end in it: behind that, another server might see a request.
fn is_plain(line: &[u8]) -> bool {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    memchr::memchr2(b'\r', 0, line).is_none()
}

fn at_most(left: u64, available: usize) -> usize {
    usize::try_from(left).map_or(available, |left| left.min(available))
}
