//! Styles for Markdown on a terminal, as it arrives.
//!
//! Nothing is removed or laid out anew: the text with its marks is what the model wrote, and can
//! be copied as such. Headings, code and strong words only look like what they are.

use crate::console::RESET;

const BOLD: &str = "\x1b[1m";
const CODE: &str = "\x1b[36m";

/// The style at the end of the text so far.
#[derive(Debug, Default)]
pub(crate) struct MarkdownStyle {
    line: Line,
    in_fence: bool,
    in_code: bool,
    in_strong: bool,
    last_was_star: bool,
}

/// What a line is, by how it begins.
#[derive(Debug)]
enum Line {
    /// The characters so far may become the mark of a heading or a fence.
    Undecided(String),
    Text,
    Heading,
    Fence,
}

impl Default for Line {
    fn default() -> Line {
        Line::Undecided(String::new())
    }
}

impl MarkdownStyle {
    /// The text with styles. At most seven characters at the beginning of a line are held back
    /// until they are decided.
    pub(crate) fn push(&mut self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        for c in text.chars() {
            match &mut self.line {
                Line::Undecided(mark) => {
                    mark.push(c);
                    let mark = mark.clone();
                    self.decide(&mark, &mut out);
                }
                _ => self.put(c, &mut out),
            }
        }
        out
    }

    /// What was held back, and the end of all styles.
    pub(crate) fn finish(mut self) -> String {
        let mut out = String::new();
        if let Line::Undecided(mark) = &mut self.line {
            let mark = std::mem::take(mark);
            self.line = Line::Text;
            mark.chars().for_each(|c| self.put(c, &mut out));
        }
        if self.is_styled() {
            out.push_str(RESET);
        }
        out
    }

    fn decide(&mut self, mark: &str, out: &mut String) {
        let hashes = mark.trim_end_matches(' ');
        let is_hashes = !mark.is_empty() && hashes.bytes().all(|b| b == b'#') && hashes.len() <= 6;
        let line = match mark {
            "```" => Line::Fence,
            "`" | "``" => return,
            _ if self.in_fence => Line::Text,
            _ if is_hashes && mark.len() == hashes.len() + 1 && !hashes.is_empty() => Line::Heading,
            _ if is_hashes && mark.len() == hashes.len() => return,
            _ => Line::Text,
        };
        let opens = matches!(line, Line::Fence) && !self.in_fence;
        match line {
            Line::Heading => out.push_str(BOLD),
            _ if opens => out.push_str(CODE),
            _ => {}
        }
        self.in_fence |= opens;
        let closes = matches!(line, Line::Fence) && !opens;
        self.line = line;
        if matches!(self.line, Line::Text) {
            mark.chars().for_each(|c| self.put(c, out));
        } else {
            out.push_str(mark);
        }
        if closes {
            self.in_fence = false;
        }
    }

    fn put(&mut self, c: char, out: &mut String) {
        if c == '\n' {
            // A mark that was not closed on its line was none.
            if !self.in_fence && self.is_line_styled() {
                out.push_str(RESET);
            }
            self.in_code = false;
            self.in_strong = false;
            self.last_was_star = false;
            self.line = Line::default();
            out.push(c);
            return;
        }
        if self.in_fence || !matches!(self.line, Line::Text) {
            out.push(c);
            return;
        }
        let is_strong_mark = c == '*' && self.last_was_star && !self.in_code;
        self.last_was_star = c == '*' && !self.last_was_star;
        match c {
            '`' if self.in_code => {
                out.push(c);
                self.in_code = false;
                out.push_str(RESET);
                if self.in_strong {
                    out.push_str(BOLD);
                }
            }
            '`' => {
                self.in_code = true;
                out.push_str(CODE);
                out.push(c);
            }
            _ if is_strong_mark => {
                out.push(c);
                self.in_strong = !self.in_strong;
                out.push_str(if self.in_strong { BOLD } else { RESET });
            }
            _ => out.push(c),
        }
    }

    /// Whether a style of this line is on.
    fn is_line_styled(&self) -> bool {
        self.in_code || self.in_strong || matches!(self.line, Line::Heading | Line::Fence)
    }

    fn is_styled(&self) -> bool {
        self.in_fence || self.is_line_styled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn styled(chunks: &[&str]) -> String {
        let mut style = MarkdownStyle::default();
        let mut out: String = chunks.iter().map(|chunk| style.push(chunk)).collect();
        out.push_str(&style.finish());
        // Short names, so that the table below can be read.
        out.replace(BOLD, "{b}")
            .replace(CODE, "{c}")
            .replace(RESET, "{/}")
    }

    const CASES: [(&str, &str); 17] = [
        ("", ""),
        ("plain", "plain"),
        ("# Title\ntext", "{b}# Title{/}\ntext"),
        ("####### no\n", "####### no\n"),
        ("#hash\n#", "#hash\n#"),
        ("a # b\n", "a # b\n"),
        ("a `x y` b", "a {c}`x y`{/} b"),
        ("`start` b", "{c}`start`{/} b"),
        ("a `open\nb", "a {c}`open{/}\nb"),
        ("**so** it", "**{b}so**{/} it"),
        ("a **open\nb", "a **{b}open{/}\nb"),
        ("2 * 3 * 4", "2 * 3 * 4"),
        ("`**` x", "{c}`**`{/} x"),
        ("**a `b` c** d", "**{b}a {c}`b`{/}{b} c**{/} d"),
        (
            "```rust\n# no `title` **x**\n```\nb",
            "{c}```rust\n# no `title` **x**\n```{/}\nb",
        ),
        ("```\nopen", "{c}```\nopen{/}"),
        ("\n\n# A", "\n\n{b}# A{/}"),
    ];

    #[test]
    fn headings_code_and_strong_words_are_styled_and_end_where_they_end() {
        for (text, expected) in CASES {
            assert_eq!(styled(&[text]), expected, "{text:?}");
        }
    }

    #[test]
    fn styles_do_not_depend_on_how_the_text_arrives_and_change_no_character_of_it() {
        for (text, expected) in CASES {
            let characters: Vec<String> = text.chars().map(String::from).collect();
            let chunks: Vec<&str> = characters.iter().map(String::as_str).collect();
            assert_eq!(styled(&chunks), expected, "{text:?} by characters");
            let bare = ["{b}", "{c}", "{/}"]
                .iter()
                .fold(styled(&[text]), |s, mark| s.replace(mark, ""));
            assert_eq!(bare, text);
        }
    }
}
