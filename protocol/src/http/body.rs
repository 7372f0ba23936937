//! Bodies of requests. The server does not use them, but it must find their end, because the next request begins there.

use super::response::Status;

/// Maximum length of the line with a chunk's size, in bytes and with its end. Only extensions make such a line long,
/// and clients do not use them.
const SIZE_LINE: usize = 256;

/// Maximum size of the fields after the last chunk, in bytes.
const TRAILERS: usize = 4 * 1024;

/// Rest of a request's body that has not been skipped.
#[derive(Debug, Clone, Copy)]
pub(super) enum Body {
    /// This number of bytes.
    Length(u64),
    /// Line with a chunk's size. All chunks so far have `total` bytes (RFC 9112, 7.1).
    Size { total: u64 },
    /// `left` bytes of a chunk, then CR LF. All chunks so far, this one included, have `total` bytes.
    Chunk { left: u64, total: u64 },
    /// Fields, up to an empty line. `skipped` bytes of them were skipped.
    Trailers { skipped: usize },
}

impl Body {
    pub(super) const NONE: Body = Body::Length(0);
    pub(super) const CHUNKED: Body = Body::Size { total: 0 };

    /// Returns whether all of the body was skipped.
    pub(super) fn is_over(&self) -> bool {
        matches!(self, Body::Length(0))
    }

    /// Returns whether the body is known to be longer than `most` bytes before any of it has arrived.
    pub(super) fn is_longer_than(&self, most: usize) -> bool {
        matches!(self, Body::Length(length) if *length > most as u64)
    }

    /// Skips as much of the body as `input` has, and returns the number of bytes skipped.
    ///
    /// # Errors
    ///
    /// The body is malformed or longer than `most` bytes; the status is that of the response.
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

    /// Skips one part of the body and returns its length: 0 if more input is needed. See [`skip`](Self::skip).
    fn skip_part(&mut self, input: &[u8], most: usize) -> Result<usize, Status> {
        match self {
            Body::Length(left) => {
                let count = at_most(*left, input.len());
                *left -= count as u64;
                Ok(count)
            }
            Body::Size { total } => {
                let window = &input[..input.len().min(SIZE_LINE)];
                // The parser accepts a size without digits as zero, and a zero would end the body.
                if window.first().is_some_and(|byte| !byte.is_ascii_hexdigit()) {
                    return Err(Status::BadRequest);
                }
                match httparse::parse_chunk_size(window) {
                    Ok(httparse::Status::Complete((end, size))) => {
                        // The parser accepts a line end inside an extension, where another server may see two lines.
                        if memchr::memchr(b'\n', &window[..end - 1]).is_some() {
                            return Err(Status::BadRequest);
                        }
                        let total = total.saturating_add(size);
                        if total > most as u64 {
                            return Err(Status::ContentTooLarge);
                        }
                        *self = match size {
                            0 => Body::Trailers { skipped: 0 },
                            left => Body::Chunk { left, total },
                        };
                        Ok(end)
                    }
                    Ok(httparse::Status::Partial) if window.len() < SIZE_LINE => Ok(0),
                    _ => Err(Status::BadRequest),
                }
            }
            Body::Chunk { left: 0, total } => match input {
                [b'\r', b'\n', ..] => {
                    *self = Body::Size { total: *total };
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
            Body::Trailers { skipped } => {
                let line = memchr::memchr(b'\n', input).map(|end| &input[..=end]);
                if *skipped + line.unwrap_or(input).len() > TRAILERS {
                    return Err(Status::FieldsTooLarge);
                }
                match line {
                    None => Ok(0),
                    Some(line) if !is_plain(line) => Err(Status::BadRequest),
                    Some(line) => {
                        *skipped += line.len();
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

/// Returns whether the line contains no CR and no NUL before its end. Another server might take such a byte as the end
/// of the line and parse a request after it.
fn is_plain(line: &[u8]) -> bool {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    memchr::memchr2(b'\r', 0, line).is_none()
}

/// Returns the smaller of the two numbers.
fn at_most(left: u64, available: usize) -> usize {
    usize::try_from(left).map_or(available, |left| left.min(available))
}
