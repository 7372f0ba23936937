//! `http`: HTTP/1.1, as far as files need it: GET and HEAD, keep-alive and pipelining, one byte range.
//!
//! `/` lists the files, `/files/NAME` is one. The heads are made and understood here; where the files come from, and
//! what time it is, whoever serves them says by a [`Site`].

mod body;
mod request;
mod response;
mod script;
mod session;
mod site;

pub use script::{Content, Hashing, Page};
pub use site::{Found, Listed, NoSite, Site, SiteFile};

use crate::{Protocol, Usual};

pub(crate) const PROTOCOL: Protocol = Protocol {
    name: "http",
    summary: "HTTP/1.1: `/` lists files, `/files/NAME` is one (without --root: 13b, 13k and 13m)",
    open: |options| Box::new(session::Responder::new(options)),
    ask: |options| Box::new(script::Getter::new(options)),
    requests_per_connection: None,
    requests_differ: false,
    usual: Usual::CROWD,
};
