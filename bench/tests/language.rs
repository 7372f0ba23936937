//! Checks the language of the repository: the rules of `CONTRIBUTING.md` that a program can check.
//!
//! The check reads every source file, page and script. It refuses certain words anywhere, certain sentences in comments
//! and pages, and certain test names. Two lists below allow deviations: [`EXCEPTIONS`] holds uses that are right and
//! stay, [`NOT_CONVERTED`] holds files that still break the rules.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};
use ra_ap_rustc_lexer::{DocStyle, FrontmatterAllowed, LiteralKind, TokenKind, tokenize};
use walkdir::WalkDir;

/// Words that a sentence about a machine does not need. A word is also refused as a part of an identifier.
const WORDS: &[&str] = &[
    "anybody",
    "anyone",
    "conscience",
    "everybody",
    "everyone",
    "exhibit",
    "exhibits",
    "foretold",
    "likewise",
    "mended",
    "mends",
    "nobody",
    "somebody",
    "someone",
    "unluckiest",
    "who",
    "whoever",
    "whom",
    "whomever",
];

/// Beginnings of sentences that make the reader look for the subject. A question may begin with "What".
const BEGINNINGS: &[&str] = &["What ", "So many ", "So much ", "So long ", "Of whom "];

/// Beginnings of test names that do not name the unit under test.
const TEST_NAMES: &[&str] = &["what_", "it_", "they_"];

/// Words that are right in one file and stay there.
struct Exception {
    path: &'static str,
    words: &'static [&'static str],
    reason: &'static str,
}

/// At most [`MOST_EXCEPTIONS`], each with its reason.
const EXCEPTIONS: &[Exception] = &[
    Exception {
        path: THIS_FILE,
        words: WORDS,
        reason: "the check names the words that it refuses",
    },
    Exception {
        path: "CONTRIBUTING.md",
        words: &[
            "who",
            "whoever",
            "nobody",
            "somebody",
            "everybody",
            "mended",
            "mends",
            "conscience",
            "likewise",
        ],
        reason: "the rule names the words that it refuses",
    },
];

const MOST_EXCEPTIONS: usize = 10;

/// Files that still break the rules. The list may only shrink: a file that keeps the rules must leave it, and
/// [`MOST_NOT_CONVERTED`] follows. Nothing under `docs/`, no README and no CONTRIBUTING may be on it.
const NOT_CONVERTED: &[&str] = &[];

const MOST_NOT_CONVERTED: usize = 0;

/// This file has texts that break the rules, as examples: of the rules only the words are checked in it.
const THIS_FILE: &str = "bench/tests/language.rs";

/// One place that breaks a rule.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    line: usize,
    /// The word or the sentence.
    text: String,
    rule: &'static str,
}

fn finding(line: usize, text: &str, rule: &'static str) -> Finding {
    Finding {
        line,
        text: text.to_string(),
        rule,
    }
}

/// Splits a text into its words: at everything that is no letter, and inside camel case.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphabetic()).flat_map(|token| {
        let mut starts = vec![0];
        let mut lower = false;
        for (at, c) in token.char_indices() {
            if c.is_uppercase() && lower {
                starts.push(at);
            }
            lower = c.is_lowercase();
        }
        starts.push(token.len());
        let pieces: Vec<&str> = starts
            .windows(2)
            .map(|pair| &token[pair[0]..pair[1]])
            .collect();
        pieces
    })
}

/// Finds the refused words of a text of any kind, line by line.
fn refused_words(text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for word in words(line) {
            if WORDS.contains(&word.to_lowercase().as_str()) {
                findings.push(finding(
                    number + 1,
                    word,
                    "a word to replace by the part's name",
                ));
            }
        }
    }
    findings
}

/// Finds the refused sentences of a Markdown text. Code and headings are not sentences.
fn refused_sentences(markdown: &str, first_line: usize) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut block = String::new();
    let mut block_line = first_line;
    let (mut in_code, mut in_heading) = (false, false);
    let line_of = |offset: usize| first_line + markdown[..offset].matches('\n').count();
    for (event, range) in Parser::new_ext(markdown, Options::ENABLE_TABLES).into_offset_iter() {
        match event {
            Event::Start(Tag::CodeBlock(_)) => in_code = true,
            Event::End(TagEnd::CodeBlock) => in_code = false,
            Event::Start(Tag::Heading { .. }) => in_heading = true,
            Event::End(TagEnd::Heading(_)) => in_heading = false,
            Event::Text(text) if !in_code && !in_heading => {
                if block.is_empty() {
                    block_line = line_of(range.start);
                }
                block.push_str(&text);
            }
            Event::Code(_) if !in_heading => block.push_str("code"),
            Event::SoftBreak | Event::HardBreak => block.push(' '),
            Event::Start(Tag::Paragraph | Tag::Item | Tag::TableCell | Tag::List(_))
            | Event::End(TagEnd::Paragraph | TagEnd::Item | TagEnd::TableCell) => {
                findings.extend(block_findings(&block, block_line));
                block.clear();
            }
            _ => {}
        }
    }
    findings.extend(block_findings(&block, block_line));
    findings
}

fn block_findings(block: &str, line: usize) -> Vec<Finding> {
    let mut findings = Vec::new();
    for sentence in sentences(block) {
        let asks = sentence.trim_end_matches(['"', ')', '*']).ends_with('?');
        if BEGINNINGS.iter().any(|one| sentence.starts_with(one)) && !asks {
            findings.push(finding(
                line,
                sentence,
                "a sentence without a plain subject",
            ));
        }
    }
    findings
}

/// Splits a paragraph into sentences: behind `.`, `?`, `!` or `:`, where white space and a capital letter follow.
fn sentences(block: &str) -> Vec<&str> {
    let mut sentences = Vec::new();
    let mut start = 0;
    for (at, c) in block.char_indices() {
        let rest = &block[at + c.len_utf8()..];
        let ends = matches!(c, '.' | '?' | '!' | ':')
            && rest.starts_with(char::is_whitespace)
            && rest.trim_start().starts_with(char::is_uppercase);
        if ends {
            sentences.push(block[start..=at].trim());
            start = at + 1;
        }
    }
    sentences.push(block[start..].trim());
    sentences
}

/// A comment of several lines, without its slashes.
struct Comment {
    line: usize,
    text: String,
}

/// The comments, the string literals and the names of tests of a Rust file, each with its line.
fn parts_of(source: &str) -> (Vec<Comment>, Vec<Comment>, Vec<(usize, String)>) {
    let (mut comments, mut strings, mut names) = (Vec::<Comment>::new(), Vec::new(), Vec::new());
    let (mut offset, mut line) = (0, 1);
    // The comment that the next line may continue, and the line on which it would.
    let mut open: Option<(usize, Option<DocStyle>)> = None;
    let mut after_fn = false;
    for token in tokenize(source, FrontmatterAllowed::No) {
        let text = &source[offset..offset + token.len as usize];
        match token.kind {
            TokenKind::LineComment { doc_style } => {
                let content = text
                    .trim_start_matches('/')
                    .trim_start_matches('!')
                    .trim_end();
                match comments.last_mut() {
                    Some(comment) if open == Some((line, doc_style)) => {
                        comment.text.push('\n');
                        comment
                            .text
                            .push_str(content.strip_prefix(' ').unwrap_or(content));
                    }
                    _ => comments.push(Comment {
                        line,
                        text: content.strip_prefix(' ').unwrap_or(content).to_string(),
                    }),
                }
                open = Some((line + 1, doc_style));
            }
            TokenKind::Literal {
                kind: LiteralKind::Str { .. } | LiteralKind::RawStr { .. },
                ..
            } => strings.push(Comment {
                line,
                text: content_of_literal(text),
            }),
            TokenKind::Ident if after_fn => names.push((line, text.to_string())),
            _ => {}
        }
        if token.kind != TokenKind::Whitespace {
            after_fn = token.kind == TokenKind::Ident && text == "fn";
        }
        line += text.matches('\n').count();
        offset += token.len as usize;
    }
    (comments, strings, names)
}

/// The text between the quotes of a string literal, with its line breaks.
fn content_of_literal(literal: &str) -> String {
    let content = literal.split_once('"').map_or("", |(_, rest)| rest);
    let content = content.trim_end_matches('#').trim_end_matches('"');
    content.replace("\\n", "\n").replace("\\\n", "")
}

/// All findings in one file, by the rules for its kind.
fn check(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = refused_words(text);
    if path.ends_with(".md") {
        findings.extend(refused_sentences(text, 1));
    }
    if path.ends_with(".rs") && path != THIS_FILE {
        let (comments, strings, names) = parts_of(text);
        for comment in comments.iter().chain(&strings) {
            findings.extend(refused_sentences(&comment.text, comment.line));
        }
        for comment in comments {
            let text = comment.text.trim();
            let inner = text.strip_prefix('(').and_then(|rest| {
                rest.strip_suffix(')')
                    .or_else(|| rest.strip_suffix(").").or(rest.strip_suffix(".)")))
            });
            if inner.is_some_and(|inner| !inner.contains(['(', ')'])) {
                findings.push(finding(
                    comment.line,
                    text,
                    "a whole comment in parentheses",
                ));
            }
        }
        for (line, name) in names {
            if TEST_NAMES.iter().any(|one| name.starts_with(one)) {
                findings.push(finding(line, &name, "a name that does not say which unit"));
            }
        }
    }
    findings.sort();
    findings
}

/// Every file whose text is ours: sources, pages, settings and scripts. Licences are quoted and not ours.
fn files() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let generated = ["target", ".git", "results", "book", "corpus", "artifacts"];
    let walk = WalkDir::new(&root).sort_by_file_name().into_iter();
    let mut files = Vec::new();
    for entry in walk.filter_entry(|entry| !generated.iter().any(|name| entry.file_name() == *name))
    {
        let entry = entry.expect("the repository can be read");
        let path = entry
            .path()
            .strip_prefix(&root)
            .expect("it is below the root");
        let name = entry.file_name().to_string_lossy();
        let extension = path
            .extension()
            .map(|one| one.to_string_lossy().into_owned());
        let ours = match extension.as_deref() {
            Some(extension) => {
                ["rs", "md", "toml", "py", "go", "js", "html", "css"].contains(&extension)
            }
            None => ["justfile", "run"].contains(&&*name),
        };
        if entry.file_type().is_file() && ours {
            let text = fs::read_to_string(entry.path()).expect("a text file is UTF-8");
            files.push((path.to_string_lossy().into_owned(), text));
        }
    }
    files
}

#[test]
fn repository_keeps_the_rules_of_language() {
    let mut broken = String::new();
    let mut converted: BTreeSet<&str> = NOT_CONVERTED.iter().copied().collect();
    let mut unused: BTreeSet<&str> = EXCEPTIONS.iter().map(|one| one.path).collect();
    for (path, text) in files() {
        for found in check(&path, &text) {
            let word = found.text.to_lowercase();
            let excepted = EXCEPTIONS
                .iter()
                .find(|one| one.path == path && one.words.contains(&word.as_str()));
            if let Some(exception) = excepted {
                unused.remove(exception.path);
            } else if NOT_CONVERTED.contains(&path.as_str()) {
                converted.remove(path.as_str());
            } else {
                broken.push_str(&format!(
                    "{path}:{}: {}: {}\n",
                    found.line, found.rule, found.text
                ));
            }
        }
    }
    assert!(
        broken.is_empty(),
        "CONTRIBUTING.md explains the rules:\n{broken}"
    );
    assert!(
        converted.is_empty(),
        "these keep the rules now; take them off NOT_CONVERTED: {converted:?}"
    );
    assert!(
        unused.is_empty(),
        "no longer needed; take them off EXCEPTIONS: {unused:?}"
    );
}

#[test]
fn lists_of_deviations_are_short_and_only_shrink() {
    assert!(EXCEPTIONS.len() <= MOST_EXCEPTIONS);
    assert!(EXCEPTIONS.iter().all(|one| !one.reason.is_empty()));
    assert_eq!(
        NOT_CONVERTED.len(),
        MOST_NOT_CONVERTED,
        "set MOST_NOT_CONVERTED to the new length"
    );
    for path in NOT_CONVERTED {
        let is_page =
            path.starts_with("docs/") || path.ends_with("README.md") || *path == "CONTRIBUTING.md";
        assert!(!is_page, "{path} must keep the rules");
    }
}

#[test]
fn public_type_names_are_unique_in_the_workspace() {
    let mut places: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, text) in files() {
        // An example of the museum is a pair of files with the same types; tests and benches export nothing.
        let exports =
            path.contains("/src/") && !path.ends_with("/wrong.rs") && !path.ends_with("/fixed.rs");
        if !path.ends_with(".rs") || !exports {
            continue;
        }
        for line in text.lines() {
            let line = line.trim_start();
            let Some(rest) = line.strip_prefix("pub ") else {
                continue;
            };
            let mut words = rest.split(|c: char| !c.is_alphanumeric() && c != '_');
            if let (Some("struct" | "enum" | "trait" | "type" | "union"), Some(name)) =
                (words.next(), words.next())
            {
                places
                    .entry(name.to_string())
                    .or_default()
                    .insert(path.clone());
            }
        }
    }
    places.retain(|_, paths| paths.len() > 1);
    assert!(
        places.is_empty(),
        "one name for several public types: {places:#?}"
    );
}

/// The rules, each with a text that breaks it and one that does not.
mod rules {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<(usize, String)> {
        check(path, text)
            .into_iter()
            .map(|one| (one.line, one.text))
            .collect()
    }

    #[test]
    fn refused_word_is_found_in_any_text_and_in_identifiers() {
        let source =
            "// fine\nfn nobody_is_lost() {}\nlet x = \"Who asks?\"; struct ServedEverybody;\n";
        let expected = [(2, "nobody"), (3, "Everybody"), (3, "Who")];
        assert_eq!(
            found("a.rs", source),
            expected.map(|(line, word)| (line, word.to_string()))
        );
        assert_eq!(
            found("a.toml", "# for somebody"),
            [(1, "somebody".to_string())]
        );
        assert!(found("a.rs", "fn whole() { whose(); }").is_empty());
    }

    #[test]
    fn clause_as_a_subject_is_found_in_comments_strings_and_pages() {
        let sentence = "What is sent is read.";
        for (path, text) in [
            ("a.rs", format!("//! Fine.\n//! Fine too. {sentence}\n")),
            ("a.rs", format!("fn f() {{\n    // {sentence}\n}}\n")),
            ("a.rs", format!("const HELP: &str = \"{sentence}\";")),
            ("a.md", format!("# What this is\n\n- one\n- {sentence}\n")),
            (
                "a.md",
                format!("| a | b |\n| --- | --- |\n| {sentence} | x |\n"),
            ),
        ] {
            let findings = found(path, &text);
            assert_eq!(findings.len(), 1, "{text}: {findings:?}");
            assert!(findings[0].1.contains("What is sent is read"), "{text}");
        }
    }

    #[test]
    fn question_heading_and_code_are_no_findings() {
        for text in [
            "What is sent?",
            "# What is sent\n\nBytes.",
            "```text\nWhat is sent is read.\n```",
            "`What is` code, and somewhat is a word.",
        ] {
            assert!(found("a.md", text).is_empty(), "{text}");
        }
    }

    #[test]
    fn comment_in_parentheses_is_found() {
        assert_eq!(
            found("a.rs", "// (All of it\n// at once.)\nfn f() {}\n").len(),
            1
        );
        assert!(found("a.rs", "// Sends all (at once).\nfn f() {}\n").is_empty());
    }

    #[test]
    fn test_name_without_its_unit_is_found() {
        let source = "#[test]\nfn what_was_sent_is_read() {}\n";
        assert_eq!(
            found("a.rs", source),
            [(2, "what_was_sent_is_read".to_string())]
        );
    }
}
