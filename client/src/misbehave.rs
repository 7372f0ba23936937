//! Kinds of misbehaving clients that every server meets, each with a name.

use std::sync::Arc;
use std::time::Duration;

use protocol::http::Page;
use protocol::{
    Bulk, CloseReason, Protocol, ReplyStatus, Script, ScriptOptions, SessionOptions, Step,
    WrongReply,
};

use crate::actions::{Action, Cut, PeerScript, ScriptFactory};

/// Kind of misbehaviour, or of cuts as the network may make them.
#[derive(Debug)]
pub struct Misbehaviour {
    /// Name on the command line.
    pub name: &'static str,
    /// Behaviour of these clients, in one line.
    pub summary: &'static str,
    /// Default number of clients.
    pub clients: usize,
    /// Function that returns the script of one client, from its number; `None`: this can't be done over the protocol.
    pub peer_script: fn(&RequestSpec, usize) -> Option<PeerScript>,
    /// Obligation of the server towards these clients.
    pub obligation: Obligation,
}

/// Obligation of a server towards the clients of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obligation {
    /// The server owes all replies, byte by byte: these clients do nothing wrong, and all of their actions must
    /// complete.
    Replies,
    /// The server must let all of their actions complete, as they are written: with an error in the protocol's own
    /// form, or with a close.
    End,
    /// The server owes nothing: these clients stay until they are told to leave, or the server closes them.
    Nothing,
}

/// Requests to send, and the settings of the server on which their replies depend: so replies can be predicted.
#[derive(Debug, Clone)]
pub struct RequestSpec {
    /// Protocol of the requests and replies.
    pub protocol: &'static Protocol,
    /// Seed of the requests: the same seed gives the same bytes.
    pub seed: u64,
    /// Messages that `bulk` is to send.
    pub bulk: Bulk,
    /// Page that is requested over `http`.
    pub page: Arc<Page>,
}

/// Output of a session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionOutput {
    /// All bytes that the session sent.
    pub bytes: Vec<u8>,
    /// Reason for which the session closed the conversation; `None`: it did not.
    pub over: Option<CloseReason>,
}

impl RequestSpec {
    /// Returns the script of one conversation of one client. No two clients, and no two conversations of one client,
    /// send the same bytes.
    pub fn script(&self, client: usize, conversation: u64, size: Option<usize>) -> Box<dyn Script> {
        (self.protocol.ask)(&ScriptOptions {
            size,
            seed: self
                .seed
                .wrapping_add(conversation.wrapping_mul(0xd134_2543_de82_ef95)),
            client: client as u64,
            bulk: self.bulk,
            page: Arc::clone(&self.page),
        })
    }

    /// Returns a factory of the scripts of one client, for [`Action::Converse`].
    pub fn scripts(&self, client: usize) -> ScriptFactory {
        let spec = self.clone();
        Arc::new(move |conversation| spec.script(client, conversation, None))
    }

    /// Returns the number of requests that one conversation may hold, `most` at most.
    pub fn requests(&self, most: u64) -> u64 {
        self.protocol
            .requests_per_connection
            .unwrap_or(most)
            .min(most)
    }

    /// Returns whether the bytes of the replies can be predicted. Those of `http` can't: its replies have dates.
    pub fn deterministic(&self) -> bool {
        self.protocol.name != "http"
    }

    /// Returns whether the end of a request can be recognised. Over `upper` and `hello` every byte is a request.
    pub fn framed(&self) -> bool {
        !matches!(self.protocol.name, "upper" | "hello")
    }

    /// Returns whether a request may be cut at all. A server that answers the first bytes and closes would reset the
    /// connection because of the others.
    pub fn may_cut(&self) -> bool {
        self.protocol.requests_per_connection.is_none()
    }

    /// Returns the output of a session that receives `input`, and then the end of the input if `ended`. The output is
    /// useless for protocols whose replies are not [deterministic](Self::deterministic).
    pub fn replies(&self, input: &[u8], ended: bool) -> SessionOutput {
        let options = SessionOptions {
            bulk: self.bulk,
            ..SessionOptions::default()
        };
        let mut session = (self.protocol.open)(&options);
        session.receive(input);
        if ended {
            session.end_of_input();
        }
        let mut output = SessionOutput::default();
        loop {
            match session.step() {
                Step::Read => return output,
                Step::Write(bytes) => {
                    output.bytes.extend_from_slice(bytes);
                    let count = bytes.len();
                    session.sent(count);
                }
                // A session without a file store sends no file.
                Step::SendFile(slice) => {
                    let count = slice.len();
                    session.sent(usize::try_from(count).unwrap_or(usize::MAX));
                }
                Step::Work(_) => session.worked(),
                Step::Close(reason) => {
                    output.over = Some(reason);
                    return output;
                }
            }
        }
    }

    /// Returns all requests of one conversation, `most` at most, joined, and their number. No two of them are the same,
    /// where the protocol's requests can differ; receipts (of `bulk`) are sent before they are due.
    pub fn all_at_once(&self, client: usize, size: Option<usize>, most: u64) -> (Vec<u8>, u64) {
        let receipts = self.receipts(client);
        let mut bytes = Vec::new();
        let count = self.requests(most);
        for number in 0..count {
            // Where lines are numbered, each request is the first line of another client.
            let line_client = client + 1_000_003 * usize::try_from(number).unwrap_or(0);
            self.script(line_client, number, size).ask(&mut bytes);
            bytes.extend_from_slice(&receipts);
        }
        (bytes, count)
    }

    /// Returns the receipts that a client sends for the reply to its first request.
    fn receipts(&self, client: usize) -> Vec<u8> {
        let mut receipts = Vec::new();
        if self.protocol.name == "bulk" {
            let (mut script, mut request) = (self.script(client, 0, None), Vec::new());
            script.ask(&mut request);
            if script.receive(&self.replies(&request, false).bytes).is_ok() {
                script.interject(&mut receipts);
            }
        }
        receipts
    }

    /// Returns a factory of scripts with one long request, which holds `most` requests of one client (or fewer, if a
    /// conversation holds fewer); its reply is all of their replies.
    pub fn pipeline(&self, client: usize, size: Option<usize>, most: u64) -> ScriptFactory {
        self.joined_script(client, size, most, true)
    }

    /// Returns a factory of scripts for the replies of [`pipeline`](Self::pipeline) alone, for a client that has
    /// already sent the requests: the scripts send nothing.
    pub fn pipeline_replies(&self, client: usize, size: Option<usize>, most: u64) -> ScriptFactory {
        self.joined_script(client, size, most, false)
    }

    fn joined_script(
        &self,
        client: usize,
        size: Option<usize>,
        most: u64,
        sends: bool,
    ) -> ScriptFactory {
        let (requests, count) = self.all_at_once(client, size, most);
        let request: Arc<[u8]> = if sends { requests.as_slice() } else { &[] }.into();
        if self.deterministic() {
            let reply: Arc<[u8]> = self.replies(&requests, false).bytes.into();
            return Arc::new(move |_| {
                Box::new(PredictedReply {
                    request: Arc::clone(&request),
                    reply: Arc::clone(&reply),
                    received: 0,
                })
            });
        }
        let spec = self.clone();
        Arc::new(move |_| {
            Box::new(ReplySequence {
                request: Arc::clone(&request),
                script: spec.script(client, 0, size),
                body: spec.page.content.get().map_or(0, |content| content.length),
                left: count,
                line: Some(0),
                body_left: 0,
            })
        })
    }

    /// Returns the first request of a client.
    pub fn request(&self, client: usize) -> Vec<u8> {
        let mut request = Vec::new();
        self.script(client, 0, None).ask(&mut request);
        request
    }

    /// Returns the first half of a client's first request: never empty and never all of it. `None`: there is no such
    /// half.
    fn half(&self, client: usize) -> Option<Vec<u8>> {
        let mut request = self.request(client);
        request.truncate(request.len() / 2);
        (self.framed() && !request.is_empty()).then_some(request)
    }
}

/// Script of a request whose reply is known.
struct PredictedReply {
    request: Arc<[u8]>,
    reply: Arc<[u8]>,
    received: usize,
}

impl Script for PredictedReply {
    fn ask(&mut self, request: &mut Vec<u8>) {
        request.extend_from_slice(&self.request);
        self.received = 0;
    }

    fn receive(&mut self, input: &[u8]) -> Result<ReplyStatus, WrongReply> {
        let missing = &self.reply[self.received..];
        if !missing.starts_with(input) {
            let matching = missing
                .iter()
                .zip(input)
                .take_while(|(a, b)| a == b)
                .count();
            let excerpt = |bytes: &[u8]| bytes[..bytes.len().min(WrongReply::EXCERPT)].to_vec();
            return Err(WrongReply {
                offset: self.received + matching,
                expected: excerpt(&missing[matching..]),
                got: excerpt(&input[matching..]),
                words: None,
            });
        }
        self.received += input.len();
        Ok(if self.received == self.reply.len() {
            ReplyStatus::Complete
        } else {
            ReplyStatus::Partial
        })
    }
}

/// Script of several equal requests sent as one. Another script, for one of the requests, checks their replies one
/// after another.
///
/// That script accepts no byte beyond its reply, and reports only at the end of the reply that it is complete. So it
/// receives the lines of a head one by one, as much of the body as the body certainly has, and the rest byte by byte.
struct ReplySequence {
    request: Arc<[u8]>,
    script: Box<dyn Script>,
    /// Least number of bytes that a body has.
    body: u64,
    /// Number of replies that are still to come.
    left: u64,
    /// Number of bytes of the current line of the head; `None`: the body is being received.
    line: Option<usize>,
    body_left: u64,
}

impl ReplySequence {
    fn next(&mut self) {
        self.line = Some(0);
        // The bytes of this request are already sent, with those of all the others.
        self.script.ask(&mut Vec::new());
    }
}

impl Script for ReplySequence {
    fn ask(&mut self, request: &mut Vec<u8>) {
        request.extend_from_slice(&self.request);
        self.next();
    }

    fn receive(&mut self, mut input: &[u8]) -> Result<ReplyStatus, WrongReply> {
        while !input.is_empty() {
            let count = match self.line {
                Some(_) => input
                    .iter()
                    .position(|byte| *byte == b'\n')
                    .map_or(input.len(), |at| at + 1),
                None => usize::try_from(self.body_left)
                    .unwrap_or(usize::MAX)
                    .clamp(1, input.len()),
            };
            let (piece, rest) = input.split_at(count);
            input = rest;
            let status = self.script.receive(piece)?;
            match &mut self.line {
                Some(length) if !piece.ends_with(b"\n") => *length += count,
                Some(length) if *length + count > 2 => *length = 0,
                Some(_) => {
                    self.line = None;
                    self.body_left = self.body;
                }
                None => self.body_left = self.body_left.saturating_sub(count as u64),
            }
            if status == ReplyStatus::Partial {
                continue;
            }
            self.left = self.left.saturating_sub(1);
            match self.left {
                0 if input.is_empty() => return Ok(status),
                // The script reports the error in further bytes.
                0 => {}
                _ if status == ReplyStatus::Last => {
                    return Err(WrongReply {
                        offset: 0,
                        expected: Vec::new(),
                        got: Vec::new(),
                        words: Some(format!(
                            "the server announces that it closes, but still owes {} replies",
                            self.left
                        )),
                    });
                }
                _ => self.next(),
            }
        }
        Ok(ReplyStatus::Partial)
    }
}

/// Pause between two pieces: time for a server that is not busy to read the first.
const PIECE_PAUSE: Duration = Duration::from_micros(200);

/// All kinds, in the order in which tables show them.
pub static MISBEHAVIOURS: &[Misbehaviour] = &[
    Misbehaviour {
        name: "byte-by-byte",
        summary: "sends one byte at a time (harmless)",
        clients: 10,
        peer_script: |spec, client| {
            spec.may_cut().then(|| {
                PeerScript::new(vec![Action::Converse {
                    script: spec.scripts(client),
                    requests: spec.requests(3),
                    cut: Cut::Every(1, PIECE_PAUSE),
                }])
            })
        },
        obligation: Obligation::Replies,
    },
    Misbehaviour {
        name: "cut-everywhere",
        summary: "sends its requests in two pieces, each client cut at another position (harmless)",
        clients: 64,
        peer_script: |spec, client| {
            spec.may_cut().then(|| {
                PeerScript::new(vec![Action::Converse {
                    script: spec.scripts(client),
                    requests: spec.requests(2),
                    cut: Cut::At(1 + client, 10 * PIECE_PAUSE),
                }])
            })
        },
        obligation: Obligation::Replies,
    },
    Misbehaviour {
        name: "pipelined",
        summary: "sends all requests at once, before it reads the first reply (harmless)",
        clients: 10,
        peer_script: |spec, client| {
            let most = match spec.protocol.name {
                // One request asks for many bytes.
                "bulk" => 10,
                // Replies have to be parsed.
                "http" => 200,
                _ => 2000,
            };
            Some(PeerScript::new(vec![Action::Converse {
                script: spec.pipeline(client, None, most),
                requests: 1,
                cut: Cut::Whole,
            }]))
        },
        obligation: Obligation::Replies,
    },
    Misbehaviour {
        name: "half-close",
        summary: "half-closes (FIN) right after its requests, then reads the replies (harmless)",
        clients: 10,
        peer_script: |spec, client| {
            let most = if spec.protocol.name == "bulk" { 3 } else { 100 };
            let (requests, _) = spec.all_at_once(client, None, most);
            Some(PeerScript::new(vec![
                Action::send(requests),
                Action::HalfClose,
                Action::Converse {
                    script: spec.pipeline_replies(client, None, most),
                    requests: 1,
                    cut: Cut::Whole,
                },
                Action::ExpectFin,
            ]))
        },
        obligation: Obligation::Replies,
    },
    Misbehaviour {
        name: "rst-mid-request",
        summary: "resets the connection (RST) in the middle of a request",
        clients: 10,
        peer_script: |spec, client| {
            let half = spec.half(client)?;
            Some(PeerScript::new(vec![
                Action::send(half),
                Action::Pause(PIECE_PAUSE),
                Action::Reset,
            ]))
        },
        obligation: Obligation::End,
    },
    Misbehaviour {
        name: "rst-mid-reply",
        summary: "resets the connection (RST) in the middle of a reply",
        clients: 10,
        peer_script: |spec, client| {
            let (requests, _) = spec.all_at_once(client, Some(1000), 100);
            Some(PeerScript {
                small_buffers: true,
                ..PeerScript::new(vec![
                    Action::send(requests),
                    Action::ReadBytes(1),
                    Action::Reset,
                ])
            })
        },
        obligation: Obligation::End,
    },
    Misbehaviour {
        name: "fin-mid-line",
        summary: "half-closes (FIN) in the middle of a line",
        clients: 10,
        peer_script: |spec, client| {
            let half = spec.half(client)?;
            let mut actions = vec![Action::send(half.clone()), Action::HalfClose];
            if spec.deterministic() {
                actions.extend([
                    Action::expect(spec.replies(&half, true).bytes),
                    Action::ExpectFin,
                ]);
            } else {
                actions.push(Action::ReadToEnd);
            }
            Some(PeerScript::new(actions))
        },
        obligation: Obligation::End,
    },
    Misbehaviour {
        name: "silent",
        summary: "connects and sends nothing",
        clients: 10,
        peer_script: |_, _| Some(PeerScript::new(vec![Action::StayIdle])),
        obligation: Obligation::Nothing,
    },
    Misbehaviour {
        name: "slowloris",
        summary: "sends half a request and never the rest (250 clients: more than most pools have workers)",
        clients: 250,
        peer_script: |spec, client| {
            let half = spec.half(client)?;
            Some(PeerScript::new(vec![Action::send(half), Action::StayIdle]))
        },
        obligation: Obligation::Nothing,
    },
    Misbehaviour {
        name: "never-reads",
        summary: "sends requests without end and reads no reply",
        clients: 10,
        peer_script: |spec, client| {
            let (requests, _) = spec.all_at_once(client, Some(1000), 100);
            let flood = Action::Flood {
                bytes: requests.into(),
                most: 16 << 20,
                stuck: Duration::from_millis(300),
            };
            Some(PeerScript {
                small_buffers: true,
                ..PeerScript::new(vec![flood, Action::StayIdle])
            })
        },
        obligation: Obligation::Nothing,
    },
    Misbehaviour {
        name: "slow-reader",
        summary: "sends up to 100 requests at once and reads one byte per second",
        clients: 10,
        peer_script: |spec, client| {
            let (requests, _) = spec.all_at_once(client, Some(1000), 100);
            Some(PeerScript {
                small_buffers: true,
                ..PeerScript::new(vec![
                    Action::send(requests),
                    Action::ReadSlowly(Duration::from_secs(1)),
                ])
            })
        },
        obligation: Obligation::Nothing,
    },
    Misbehaviour {
        name: "storm",
        summary: "2,000 clients connect at once, send one request each and close",
        clients: 2000,
        peer_script: |spec, client| {
            Some(PeerScript::new(vec![
                Action::Converse {
                    script: spec.scripts(client),
                    requests: 1,
                    cut: Cut::Whole,
                },
                Action::Close,
            ]))
        },
        obligation: Obligation::Replies,
    },
    Misbehaviour {
        name: "hit-and-run",
        summary: "connects and closes at once, with FIN or with RST",
        clients: 100,
        peer_script: |_, client| {
            let leave = if client % 2 == 0 {
                Action::Close
            } else {
                Action::Reset
            };
            Some(PeerScript::new(vec![leave]))
        },
        obligation: Obligation::End,
    },
    Misbehaviour {
        name: "long-line",
        summary: "sends a line or a head that is longer than the limit of 64 KiB",
        clients: 10,
        peer_script: |spec, _| {
            if !spec.framed() {
                return None;
            }
            let mut line = b"GET /".to_vec();
            line.resize(100_000, b'x');
            let mut actions = vec![Action::send(line.clone())];
            if spec.deterministic() {
                actions.push(Action::expect(spec.replies(&line, false).bytes));
            }
            actions.push(Action::ReadToEnd);
            Some(PeerScript::new(actions))
        },
        obligation: Obligation::End,
    },
    Misbehaviour {
        name: "garbage",
        summary: "sends NUL bytes or random bytes, then half-closes (FIN)",
        clients: 20,
        peer_script: |spec, client| {
            let mut random = fastrand::Rng::with_seed(spec.seed ^ client as u64);
            let mut bytes = vec![0; 1000];
            if client % 2 == 1 {
                random.fill(&mut bytes);
            }
            let mut actions = vec![Action::send(bytes.clone()), Action::HalfClose];
            if spec.deterministic() {
                actions.push(Action::expect(spec.replies(&bytes, true).bytes));
            }
            actions.push(Action::ReadToEnd);
            Some(PeerScript::new(actions))
        },
        obligation: Obligation::End,
    },
    Misbehaviour {
        name: "idle-crowd",
        summary: "100 clients stay idle beside one that is busy (harmless)",
        clients: 101,
        peer_script: |spec, client| {
            Some(if client == 0 {
                PeerScript {
                    again: true,
                    ..PeerScript::new(vec![Action::Converse {
                        script: spec.scripts(client),
                        requests: spec.requests(1000),
                        cut: Cut::Whole,
                    }])
                }
            } else {
                PeerScript::new(vec![Action::StayIdle])
            })
        },
        obligation: Obligation::Nothing,
    },
];

impl Misbehaviour {
    /// Returns the kind with that name.
    ///
    /// # Errors
    ///
    /// Returns an error if there is no such kind; the message lists all kinds.
    pub fn find(name: &str) -> Result<&'static Misbehaviour, String> {
        let found = MISBEHAVIOURS.iter().find(|kind| kind.name == name);
        found.ok_or_else(|| {
            let names: Vec<_> = MISBEHAVIOURS.iter().map(|kind| kind.name).collect();
            format!(
                "no such kind of misbehaviour; the kinds are {}",
                names.join(", ")
            )
        })
    }

    /// Returns the scripts of `clients` clients; `None`: this can't be done over the protocol.
    pub fn peer_scripts(&self, spec: &RequestSpec, clients: usize) -> Option<Vec<PeerScript>> {
        (0..clients)
            .map(|client| (self.peer_script)(spec, client))
            .collect()
    }
}
