//! Text to pieces: the three isolating splits of the pre-tokenizer `joyai-llm` (also called
//! `deepseek-v3`), as one scan without a regular expression engine.
//!
//! The published form is three patterns, each applied to what the one before it left over:
//! numbers `\p{N}{1,3}`, Han and kana `[一-龥぀-ゟ゠-ヿ]+`, and a third with six alternatives
//! (see [`PATTERNS`]). A backtracking engine needs stack or time that grows with a run of equal
//! characters, and a prompt can be one such run; this scan looks at most one character ahead and
//! is linear.

mod classes;

use std::ops::Range;

/// The patterns whose result this module computes, in the order in which they are applied.
pub const PATTERNS: [&str; 3] = [
    r"\p{N}{1,3}",
    "[一-龥\u{3040}-ゟ゠-ヿ]+",
    concat!(
        r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"##,
        "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+",
        "| ?[\\p{P}\\p{S}]+[\r\n]*",
        "|\\s*[\r\n]+",
        r"|\s+(?!\S)|\s+",
    ),
];

/// The major Unicode 16.0 classes that the patterns tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// General category L.
    Letter,
    /// General category M.
    Mark,
    /// General category N.
    Number,
    /// General category P.
    Punctuation,
    /// General category S.
    Symbol,
    /// Separators, controls, formats, private use, unassigned.
    Other,
}

/// The class of `c` in Unicode 16.0, whatever version the standard library knows.
pub fn class(c: char) -> Class {
    let code = c as u32;
    if code < 0x80 {
        return ASCII[code as usize];
    }
    let after = classes::CLASSES.partition_point(|&(first, _, _)| first <= code);
    match after.checked_sub(1).map(|i| classes::CLASSES[i]) {
        Some((_, last, class)) if code <= last => class,
        _ => Class::Other,
    }
}

const ASCII: [Class; 128] = {
    let mut table = [Class::Other; 128];
    let mut i = 0;
    while i < 128 {
        table[i] = match i as u8 {
            b'A'..=b'Z' | b'a'..=b'z' => Class::Letter,
            b'0'..=b'9' => Class::Number,
            b'$' | b'+' | b'<' | b'=' | b'>' | b'^' | b'`' | b'|' | b'~' => Class::Symbol,
            b'!'..=b'~' => Class::Punctuation,
            _ => Class::Other,
        };
        i += 1;
    }
    table
};

/// Calls `piece` with the byte range of every piece of `text`, in order; together they cover it.
pub fn split(text: &str, mut piece: impl FnMut(Range<usize>)) {
    let mut start = 0;
    let mut section = None;
    for (at, c) in text.char_indices() {
        let here = Section::of(c);
        if section != Some(here) {
            if let Some(section) = section {
                split_section(section, text, start..at, &mut piece);
            }
            (start, section) = (at, Some(here));
        }
    }
    if let Some(section) = section {
        split_section(section, text, start..text.len(), &mut piece);
    }
}

/// What the first two patterns isolate.
#[derive(Clone, Copy, PartialEq)]
enum Section {
    Number,
    HanOrKana,
    Rest,
}

impl Section {
    fn of(c: char) -> Section {
        match c {
            '\u{4e00}'..='\u{9fa5}' | '\u{3040}'..='\u{30ff}' => Section::HanOrKana,
            _ if class(c) == Class::Number => Section::Number,
            _ => Section::Rest,
        }
    }
}

fn split_section(
    section: Section,
    text: &str,
    range: Range<usize>,
    piece: &mut impl FnMut(Range<usize>),
) {
    let body = &text[range.clone()];
    if section == Section::Number {
        let mut start = range.start;
        for (n, (at, _)) in body.char_indices().enumerate().skip(1) {
            if n % 3 == 0 {
                piece(start..range.start + at);
                start = range.start + at;
            }
        }
        piece(start..range.end);
        return;
    }
    let mut start = 0;
    while start < body.len() {
        let end = start + words_piece(&body[start..]);
        piece(range.start + start..range.start + end);
        start = end;
    }
}

/// Length in bytes of the first piece that the third pattern makes of `s`, which is not empty.
fn words_piece(s: &str) -> usize {
    match rule(s) {
        Some(len) => len,
        None => {
            // No alternative starts here: characters up to the next place where one does.
            let mut chars = s.char_indices();
            chars.next();
            chars
                .find(|&(at, _)| rule(&s[at..]).is_some())
                .map_or(s.len(), |(at, _)| at)
        }
    }
}

/// Length of the match of the third pattern at the start of `s`.
fn rule(s: &str) -> Option<usize> {
    let mut chars = s.chars();
    let first = chars.next()?;
    let second = chars.next();
    if first.is_ascii_punctuation() && second.is_some_and(|c| c.is_ascii_alphabetic()) {
        return Some(1 + run(&s[1..], |c| c.is_ascii_alphabetic()));
    }
    let is_word = |c| matches!(class(c), Class::Letter | Class::Mark);
    let is_sign = |c| matches!(class(c), Class::Punctuation | Class::Symbol);
    let may_lead = !matches!(first, '\r' | '\n') && !is_sign(first);
    // A letter that leads a word is part of the word's own run, and a mark may lead one.
    if is_word(first) || may_lead && second.is_some_and(is_word) {
        let lead = first.len_utf8();
        return Some(lead + run(&s[lead..], is_word));
    }
    let lead = usize::from(first == ' ');
    let signs = run(&s[lead..], is_sign);
    if signs > 0 {
        let end = lead + signs;
        return Some(end + run(&s[end..], |c| matches!(c, '\r' | '\n')));
    }
    if first.is_whitespace() {
        let blank = run(s, char::is_whitespace);
        if let Some(last) = s[..blank].rfind(['\r', '\n']) {
            return Some(last + 1);
        }
        let last = s[..blank].chars().next_back().map_or(0, char::len_utf8);
        // A run before something else leaves its last character to the word that follows.
        return Some(if blank == s.len() || blank == last {
            blank
        } else {
            blank - last
        });
    }
    None
}

/// Length in bytes of the longest prefix of `s` whose characters all satisfy `is`.
fn run(s: &str, is: impl Fn(char) -> bool) -> usize {
    s.char_indices()
        .find(|&(_, c)| !is(c))
        .map_or(s.len(), |(at, _)| at)
}
