//! Clients that misbehave: the kinds that every server meets, each with a name.

use std::sync::Arc;
use std::time::Duration;

use protocol::http::Page;
use protocol::{
    Bulk, CloseReason, Protocol, ReplyStatus, Script, ScriptOptions, SessionOptions, Step,
    WrongReply,
};

use crate::actions::{Action, Cut, PeerScript, ScriptFactory};

/// One way to misbehave, or to be cut as the network may cut.
#[derive(Debug)]
pub struct Misbehaviour {
    /// What the command line calls it.
    pub name: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
    /// So many do it, if nobody says otherwise.
    pub clients: usize,
    /// What each does, by its number; `None`: that can't be done over this protocol.
    pub peer_script: fn(&RequestSpec, usize) -> Option<PeerScript>,
    /// What the server owes them.
    pub obligation: Obligation,
}

/// What a server owes a client of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obligation {
    /// All replies, byte by byte: these clients do nothing wrong, and all of their actions must come to their end.
    Replies,
    /// What they do must come to its end, as their actions say: an error in the protocol's own form, or a close.
    AnEnd,
    /// Nothing: they stay until they are told to leave, or the server closes them.
    Nothing,
}

/// What is asked for, and what the server was told: so that replies can be deterministic.
#[derive(Debug, Clone)]
pub struct RequestSpec {
    /// What is said.
    pub protocol: &'static Protocol,
    /// The same seed says the same.
    pub seed: u64,
    /// What `bulk` is to send.
    pub bulk: Bulk,
    /// What `http` is asked for.
    pub page: Arc<Page>,
}

/// What a session says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionOutput {
    /// All of it.
    pub bytes: Vec<u8>,
    /// How the conversation ended, if it did.
    pub over: Option<CloseReason>,
}

impl RequestSpec {
    /// The script of one client's conversation; no two clients and no two conversations of one say the same.
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

    /// The same, for [`Action::Converse`].
    pub fn scripts(&self, client: usize) -> ScriptFactory {
        let asked = self.clone();
        Arc::new(move |conversation| asked.script(client, conversation, None))
    }

    /// As many requests as a conversation may hold, and `most` at most.
    pub fn requests(&self, most: u64) -> u64 {
        self.protocol
            .requests_per_connection
            .unwrap_or(most)
            .min(most)
    }

    /// Whether what a server must say can be deterministic byte by byte. Of `http` it can't: replies have dates.
    pub fn deterministic(&self) -> bool {
        self.protocol.name != "http"
    }

    /// Whether a request has an end that can be told. Over `upper` and `hello` every byte is a request.
    pub fn framed(&self) -> bool {
        !matches!(self.protocol.name, "upper" | "hello")
    }

    /// Whether a request may be cut at all. Who answers the first bytes and closes would break off over the others.
    pub fn may_cut(&self) -> bool {
        self.protocol.requests_per_connection.is_none()
    }

    /// What a session says to this input, and to its end if `ended`. Nothing that is worth anything where it can't be
    /// [deterministic](Self::deterministic).
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
        let mut said = SessionOutput::default();
        loop {
            match session.step() {
                Step::Read => return said,
                Step::Write(bytes) => {
                    said.bytes.extend_from_slice(bytes);
                    let count = bytes.len();
                    session.sent(count);
                }
                // Not without a site.
                Step::SendFile(slice) => {
                    let count = slice.len();
                    session.sent(usize::try_from(count).unwrap_or(usize::MAX));
                }
                Step::Work(_) => session.worked(),
                Step::Close(farewell) => {
                    said.over = Some(farewell);
                    return said;
                }
            }
        }
    }

    /// What a client asks in one conversation, all at once, and so many requests of it. No two of them are the same,
    /// where the protocol's can differ; receipts (of `bulk`) are given before they are due.
    pub fn all_at_once(&self, client: usize, size: Option<usize>, most: u64) -> (Vec<u8>, u64) {
        let receipts = self.receipts(client);
        let mut bytes = Vec::new();
        let count = self.requests(most);
        for number in 0..count {
            // Where lines are numbered, each is the first of a client of its own.
            let speaker = client + 1_000_003 * usize::try_from(number).unwrap_or(0);
            self.script(speaker, number, size).ask(&mut bytes);
            bytes.extend_from_slice(&receipts);
        }
        (bytes, count)
    }

    /// What a client says on hearing the reply to its first request.
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

    /// So many requests of one client (or fewer, if a conversation has fewer) as one long request, and all their replies
    /// as its reply.
    pub fn pipeline(&self, client: usize, size: Option<usize>, most: u64) -> ScriptFactory {
        self.in_one(client, size, most, true)
    }

    /// The replies to [the same](Self::pipeline), for whoever has asked already: nothing is said.
    pub fn pipeline_heard(&self, client: usize, size: Option<usize>, most: u64) -> ScriptFactory {
        self.in_one(client, size, most, false)
    }

    fn in_one(&self, client: usize, size: Option<usize>, most: u64, says: bool) -> ScriptFactory {
        let (requests, count) = self.all_at_once(client, size, most);
        let request: Arc<[u8]> = if says { requests.as_slice() } else { &[] }.into();
        if self.deterministic() {
            let reply: Arc<[u8]> = self.replies(&requests, false).bytes.into();
            return Arc::new(move |_| {
                Box::new(PredictedReply {
                    request: Arc::clone(&request),
                    reply: Arc::clone(&reply),
                    heard: 0,
                })
            });
        }
        let asked = self.clone();
        Arc::new(move |_| {
            Box::new(ReplySequence {
                request: Arc::clone(&request),
                script: asked.script(client, 0, size),
                body: asked.page.content.get().map_or(0, |content| content.length),
                left: count,
                line: Some(0),
                body_left: 0,
            })
        })
    }

    /// The first request of a client.
    pub fn request(&self, client: usize) -> Vec<u8> {
        let mut request = Vec::new();
        self.script(client, 0, None).ask(&mut request);
        request
    }

    /// The first half of it: never nothing, never all.
    fn half(&self, client: usize) -> Option<Vec<u8>> {
        let mut request = self.request(client);
        request.truncate(request.len() / 2);
        (self.framed() && !request.is_empty()).then_some(request)
    }
}

/// A request whose reply is known.
struct PredictedReply {
    request: Arc<[u8]>,
    reply: Arc<[u8]>,
    heard: usize,
}

impl Script for PredictedReply {
    fn ask(&mut self, request: &mut Vec<u8>) {
        request.extend_from_slice(&self.request);
        self.heard = 0;
    }

    fn receive(&mut self, input: &[u8]) -> Result<ReplyStatus, WrongReply> {
        let owed = &self.reply[self.heard..];
        if !owed.starts_with(input) {
            let right = owed.iter().zip(input).take_while(|(a, b)| a == b).count();
            let excerpt = |bytes: &[u8]| bytes[..bytes.len().min(WrongReply::EXCERPT)].to_vec();
            return Err(WrongReply {
                offset: self.heard + right,
                expected: excerpt(&owed[right..]),
                got: excerpt(&input[right..]),
                words: None,
            });
        }
        self.heard += input.len();
        Ok(if self.heard == self.reply.len() {
            ReplyStatus::Complete
        } else {
            ReplyStatus::Partial
        })
    }
}

/// Requests that are all the same, in one, and their replies, which a script for one of them hears one after another.
///
/// A script takes no byte beyond its reply, and says only then that it is complete. So it is given the lines of a head
/// one by one, as much of the body as it surely has, and the rest byte by byte.
struct ReplySequence {
    request: Arc<[u8]>,
    script: Box<dyn Script>,
    /// The least that a body has.
    body: u64,
    /// Replies that are still to come.
    left: u64,
    /// Bytes of this line of the head; `None`: it is the body's turn.
    line: Option<usize>,
    body_left: u64,
}

impl ReplySequence {
    fn next(&mut self) {
        self.line = Some(0);
        // What one of them would say has been said.
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
            let heard = self.script.receive(piece)?;
            match &mut self.line {
                Some(length) if !piece.ends_with(b"\n") => *length += count,
                Some(length) if *length + count > 2 => *length = 0,
                Some(_) => {
                    self.line = None;
                    self.body_left = self.body;
                }
                None => self.body_left = self.body_left.saturating_sub(count as u64),
            }
            if heard == ReplyStatus::Partial {
                continue;
            }
            self.left = self.left.saturating_sub(1);
            match self.left {
                0 if input.is_empty() => return Ok(heard),
                // The script says what is wrong with more.
                0 => {}
                _ if heard == ReplyStatus::Last => {
                    return Err(WrongReply {
                        offset: 0,
                        expected: Vec::new(),
                        got: Vec::new(),
                        words: Some(format!(
                            "the server says that it closes, and owes {} replies more",
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

/// Between two pieces: time for a server that is not busy to read the first.
const BETWEEN: Duration = Duration::from_micros(200);

/// All kinds, in the order in which tables show them.
pub static MISBEHAVIOURS: &[Misbehaviour] = &[
    Misbehaviour {
        name: "byte-by-byte",
        summary: "sends one byte at a time",
        clients: 10,
        peer_script: |asked, client| {
            asked.may_cut().then(|| {
                PeerScript::new(vec![Action::Converse {
                    script: asked.scripts(client),
                    requests: asked.requests(3),
                    cut: Cut::Every(1, BETWEEN),
                }])
            })
        },
        obligation: Obligation::Replies,
    },
    Misbehaviour {
        name: "cut-everywhere",
        summary: "sends its requests in two pieces, each client cut at another position",
        clients: 64,
        peer_script: |asked, client| {
            asked.may_cut().then(|| {
                PeerScript::new(vec![Action::Converse {
                    script: asked.scripts(client),
                    requests: asked.requests(2),
                    cut: Cut::At(1 + client, 10 * BETWEEN),
                }])
            })
        },
        obligation: Obligation::Replies,
    },
    Misbehaviour {
        name: "pipelined",
        summary: "sends all requests at once, before it reads the first reply",
        clients: 10,
        peer_script: |asked, client| {
            let most = match asked.protocol.name {
                // One asks for much.
                "bulk" => 10,
                // Replies have to be understood.
                "http" => 200,
                _ => 2000,
            };
            Some(PeerScript::new(vec![Action::Converse {
                script: asked.pipeline(client, None, most),
                requests: 1,
                cut: Cut::Whole,
            }]))
        },
        obligation: Obligation::Replies,
    },
    Misbehaviour {
        name: "half-close",
        summary: "ends its side right after its requests, and then reads the replies",
        clients: 10,
        peer_script: |asked, client| {
            let most = if asked.protocol.name == "bulk" {
                3
            } else {
                100
            };
            let (requests, _) = asked.all_at_once(client, None, most);
            Some(PeerScript::new(vec![
                Action::send(requests),
                Action::HalfClose,
                Action::Converse {
                    script: asked.pipeline_heard(client, None, most),
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
        summary: "breaks the connection off (RST) in the middle of a request",
        clients: 10,
        peer_script: |asked, client| {
            let half = asked.half(client)?;
            Some(PeerScript::new(vec![
                Action::send(half),
                Action::Pause(BETWEEN),
                Action::Reset,
            ]))
        },
        obligation: Obligation::AnEnd,
    },
    Misbehaviour {
        name: "rst-mid-reply",
        summary: "breaks the connection off (RST) in the middle of a reply",
        clients: 10,
        peer_script: |asked, client| {
            let (requests, _) = asked.all_at_once(client, Some(1000), 100);
            Some(PeerScript {
                small_buffers: true,
                ..PeerScript::new(vec![
                    Action::send(requests),
                    Action::ReadBytes(1),
                    Action::Reset,
                ])
            })
        },
        obligation: Obligation::AnEnd,
    },
    Misbehaviour {
        name: "fin-mid-line",
        summary: "ends its side in the middle of a line",
        clients: 10,
        peer_script: |asked, client| {
            let half = asked.half(client)?;
            let mut actions = vec![Action::send(half.clone()), Action::HalfClose];
            if asked.deterministic() {
                actions.extend([
                    Action::expect(asked.replies(&half, true).bytes),
                    Action::ExpectFin,
                ]);
            } else {
                actions.push(Action::ReadToEnd);
            }
            Some(PeerScript::new(actions))
        },
        obligation: Obligation::AnEnd,
    },
    Misbehaviour {
        name: "silent",
        summary: "connects and says nothing",
        clients: 10,
        peer_script: |_, _| Some(PeerScript::new(vec![Action::StayIdle])),
        obligation: Obligation::Nothing,
    },
    Misbehaviour {
        name: "slowloris",
        summary: "begins a request and never goes on (250 of them: more than most pools have workers)",
        clients: 250,
        peer_script: |asked, client| {
            let half = asked.half(client)?;
            Some(PeerScript::new(vec![Action::send(half), Action::StayIdle]))
        },
        obligation: Obligation::Nothing,
    },
    Misbehaviour {
        name: "never-reads",
        summary: "sends requests without end and reads no reply",
        clients: 10,
        peer_script: |asked, client| {
            let (requests, _) = asked.all_at_once(client, Some(1000), 100);
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
        summary: "asks for much and reads one byte a second",
        clients: 10,
        peer_script: |asked, client| {
            let (requests, _) = asked.all_at_once(client, Some(1000), 100);
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
        summary: "2,000 connect at once, ask once and leave",
        clients: 2000,
        peer_script: |asked, client| {
            Some(PeerScript::new(vec![
                Action::Converse {
                    script: asked.scripts(client),
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
        summary: "connects and leaves at once, with FIN or with RST",
        clients: 100,
        peer_script: |_, client| {
            let leave = if client % 2 == 0 {
                Action::Close
            } else {
                Action::Reset
            };
            Some(PeerScript::new(vec![leave]))
        },
        obligation: Obligation::AnEnd,
    },
    Misbehaviour {
        name: "long-line",
        summary: "sends a line, or a head, that is longer than the limit of 64 KiB",
        clients: 10,
        peer_script: |asked, _| {
            if !asked.framed() {
                return None;
            }
            let mut line = b"GET /".to_vec();
            line.resize(100_000, b'x');
            let mut actions = vec![Action::send(line.clone())];
            if asked.deterministic() {
                actions.push(Action::expect(asked.replies(&line, false).bytes));
            }
            actions.push(Action::ReadToEnd);
            Some(PeerScript::new(actions))
        },
        obligation: Obligation::AnEnd,
    },
    Misbehaviour {
        name: "garbage",
        summary: "sends NULs and random bytes, and ends its side",
        clients: 20,
        peer_script: |asked, client| {
            let mut random = fastrand::Rng::with_seed(asked.seed ^ client as u64);
            let mut bytes = vec![0; 1000];
            if client % 2 == 1 {
                random.fill(&mut bytes);
            }
            let mut actions = vec![Action::send(bytes.clone()), Action::HalfClose];
            if asked.deterministic() {
                actions.push(Action::expect(asked.replies(&bytes, true).bytes));
            }
            actions.push(Action::ReadToEnd);
            Some(PeerScript::new(actions))
        },
        obligation: Obligation::AnEnd,
    },
    Misbehaviour {
        name: "idle-crowd",
        summary: "100 are idle beside one that is busy",
        clients: 101,
        peer_script: |asked, client| {
            Some(if client == 0 {
                PeerScript {
                    again: true,
                    ..PeerScript::new(vec![Action::Converse {
                        script: asked.scripts(client),
                        requests: asked.requests(1000),
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
    /// The kind of that name.
    ///
    /// # Errors
    ///
    /// There is none; the message says which there are.
    pub fn find(name: &str) -> Result<&'static Misbehaviour, String> {
        let found = MISBEHAVIOURS.iter().find(|kind| kind.name == name);
        found.ok_or_else(|| {
            let names: Vec<_> = MISBEHAVIOURS.iter().map(|kind| kind.name).collect();
            format!("no such kind of client; there are {}", names.join(", "))
        })
    }

    /// The peer_scripts of so many; `None`: that can't be done over this protocol.
    pub fn peer_scripts(&self, asked: &RequestSpec, clients: usize) -> Option<Vec<PeerScript>> {
        (0..clients)
            .map(|client| (self.peer_script)(asked, client))
            .collect()
    }
}
