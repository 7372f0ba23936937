//! Shows the results of a comparison to people: `table` on a terminal, `markdown` in a file.

pub(crate) mod csv;
pub(crate) mod markdown;
pub(crate) mod table;
pub(crate) mod words;
