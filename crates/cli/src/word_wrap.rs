//! Words are not broken in the middle where a terminal's line ends.

use unicode_width::UnicodeWidthChar as _;

/// A whole text with its lines broken between words, where a width is known.
pub(crate) fn wrapped(text: &str, width: Option<usize>) -> String {
    let Some(width) = width else {
        return text.to_owned();
    };
    let mut wrap = WordWrap::new(width);
    let mut out = wrap.push(text);
    out.push_str(&wrap.finish());
    out
}

/// Breaks lines between words, as text arrives. Code blocks stay as they are.
#[derive(Debug)]
pub(crate) struct WordWrap {
    width: usize,
    /// Columns of the line that are written.
    column: usize,
    /// Blanks behind them that are not written yet.
    blanks: String,
    /// The word that is not complete, with the sequences that style it.
    word: String,
    word_width: usize,
    /// Within an escape sequence.
    in_sequence: bool,
    /// What the line begins with, as far as it may open a code block.
    mark: Option<String>,
    in_fence: bool,
    is_fence: bool,
}

impl WordWrap {
    /// Lines of so many columns.
    pub(crate) fn new(width: usize) -> WordWrap {
        WordWrap {
            width,
            column: 0,
            blanks: String::new(),
            word: String::new(),
            word_width: 0,
            in_sequence: false,
            mark: Some(String::new()),
            in_fence: false,
            is_fence: false,
        }
    }

    /// The text with lines broken, as far as its words are complete.
    pub(crate) fn push(&mut self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        for c in text.chars() {
            self.take(c, &mut out);
        }
        out
    }

    /// What was held back.
    pub(crate) fn finish(&mut self) -> String {
        let mut out = String::new();
        self.end_word(&mut out);
        out.push_str(&std::mem::take(&mut self.blanks));
        out
    }

    fn take(&mut self, c: char, out: &mut String) {
        if self.in_sequence || c == '\x1b' {
            // Styles end in a letter; they take no room.
            self.in_sequence = !c.is_ascii_alphabetic();
            self.word.push(c);
            return;
        }
        if c == '\n' {
            self.end_line(out);
            return;
        }
        self.note_mark(c);
        if self.in_fence || self.is_fence {
            self.end_word(out);
            out.push_str(&std::mem::take(&mut self.blanks));
            out.push(c);
            return;
        }
        if c == ' ' {
            self.end_word(out);
            self.blanks.push(c);
        } else {
            self.word.push(c);
            self.word_width += c.width().unwrap_or(0);
        }
    }

    /// Notes how a line begins: three backticks open a block, and close it.
    fn note_mark(&mut self, c: char) {
        let Some(mark) = &mut self.mark else {
            return;
        };
        match c {
            ' ' if mark.is_empty() => {}
            '`' => {
                mark.push(c);
                if mark.len() == 3 {
                    self.is_fence = true;
                    self.mark = None;
                }
            }
            _ => self.mark = None,
        }
    }

    fn end_word(&mut self, out: &mut String) {
        let begins = self.column + self.blanks.len();
        let is_too_long = begins + self.word_width > self.width;
        if self.word_width > 0 && is_too_long && self.column > 0 && !self.in_fence {
            // The blanks would end the line, where nobody sees them.
            self.blanks.clear();
            out.push('\n');
            self.column = 0;
        }
        if !self.word.is_empty() {
            self.column += self.blanks.len() + self.word_width;
            out.push_str(&std::mem::take(&mut self.blanks));
            out.push_str(&std::mem::take(&mut self.word));
            self.word_width = 0;
        }
    }

    fn end_line(&mut self, out: &mut String) {
        self.end_word(out);
        out.push_str(&std::mem::take(&mut self.blanks));
        out.push('\n');
        self.column = 0;
        self.in_fence ^= self.is_fence;
        self.is_fence = false;
        self.mark = Some(String::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrapped(width: usize, text: &str) -> String {
        let mut wrap = WordWrap::new(width);
        let whole = wrap.push(text) + &wrap.finish();
        // However it arrives.
        let mut wrap = WordWrap::new(width);
        let mut pieces: String = text
            .chars()
            .map(|c| wrap.push(c.encode_utf8(&mut [0; 4])))
            .collect();
        pieces.push_str(&wrap.finish());
        assert_eq!(whole, pieces, "{text:?}");
        whole
    }

    #[test]
    fn lines_end_between_words_and_code_stays_as_it_is() {
        for (text, expected) in [
            ("", ""),
            ("one two", "one two"),
            ("one two three four", "one two\nthree four"),
            ("one two  three", "one two\nthree"),
            ("one two\nthree four five", "one two\nthree four\nfive"),
            ("abcdefghijklmnop qr", "abcdefghijklmnop\nqr"),
            ("x abcdefghijklmnop", "x\nabcdefghijklmnop"),
            ("  indented words", "  indented\nwords"),
            (
                "\x1b[1mbold words\x1b[0m now",
                "\x1b[1mbold words\x1b[0m\nnow",
            ),
            (
                "```\na long line of code\n```\nand some words",
                "```\na long line of code\n```\nand some\nwords",
            ),
            ("`` no fence at all", "`` no\nfence at\nall"),
            // Characters of two columns.
            (
                "\u{6f22}\u{5b57} \u{6f22}\u{5b57}\u{6f22}\u{5b57}",
                "\u{6f22}\u{5b57}\n\u{6f22}\u{5b57}\u{6f22}\u{5b57}",
            ),
            ("trailing  ", "trailing  "),
        ] {
            assert_eq!(wrapped(10, text), expected, "{text:?}");
        }
    }
}
