//! The model's reply on stdout, as it arrives.

use std::borrow::Cow;
use std::io::{self, Write};

use crate::console::{Console, DIM, RESET};
use crate::markdown_style::MarkdownStyle;
use crate::word_wrap::WordWrap;

/// How reasoning is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReasoningStyle {
    /// Left out: the output is read by a program.
    Hidden,
    /// In less intense letters.
    Dimmed,
    /// Between `<think>` and `</think>`, where letters have no style.
    Tagged,
}

impl ReasoningStyle {
    /// Terminals see it; others when asked for.
    pub(crate) fn new(console: &Console, show: bool) -> ReasoningStyle {
        match (console.stdout_is_terminal, console.styles_stdout(), show) {
            (true, true, _) => ReasoningStyle::Dimmed,
            (true, false, _) | (false, _, true) => ReasoningStyle::Tagged,
            (false, _, false) => ReasoningStyle::Hidden,
        }
    }
}

/// Writes one reply.
pub(crate) struct ReplyWriter<W> {
    out: W,
    style: ReasoningStyle,
    /// Control characters would reach a terminal, which obeys them.
    for_terminal: bool,
    /// Styles of content, where letters have styles.
    markdown: Option<MarkdownStyle>,
    /// Where lines are broken, on a terminal whose width is known.
    wrap: Option<WordWrap>,
    place: Place,
    at_line_start: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Start,
    Reasoning,
    Content,
}

impl<W: Write> ReplyWriter<W> {
    /// A writer at the beginning of a reply.
    pub(crate) fn new(out: W, style: ReasoningStyle, for_terminal: bool) -> ReplyWriter<W> {
        ReplyWriter {
            out,
            style,
            for_terminal,
            markdown: (style == ReasoningStyle::Dimmed).then(MarkdownStyle::default),
            wrap: None,
            place: Place::Start,
            at_line_start: true,
        }
    }

    /// Breaks lines of so many columns between words.
    pub(crate) fn wrapped(mut self, width: Option<usize>) -> ReplyWriter<W> {
        self.wrap = width.map(WordWrap::new);
        self
    }

    /// More reasoning.
    ///
    /// # Errors
    /// What the output says, as of all methods.
    pub(crate) fn reasoning(&mut self, text: &str) -> io::Result<()> {
        if self.style == ReasoningStyle::Hidden || text.is_empty() {
            return Ok(());
        }
        if self.place != Place::Reasoning {
            self.place = Place::Reasoning;
            match self.style {
                ReasoningStyle::Tagged => self.write("<think>\n")?,
                _ => self.put(DIM)?,
            }
        }
        self.write(text)?;
        self.out.flush()
    }

    /// More content.
    pub(crate) fn content(&mut self, text: &str) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        self.end_reasoning()?;
        self.place = Place::Content;
        let text = self.shown(text).into_owned();
        match &mut self.markdown {
            Some(markdown) => {
                let styled = markdown.push(&text);
                self.put(&styled)?;
            }
            None => self.put(&text)?,
        }
        self.at_line_start = text.ends_with('\n');
        self.out.flush()
    }

    /// The end, wherever the reply was: styles are reset and the line is ended.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        let was_reasoning = self.place == Place::Reasoning;
        self.end_reasoning()?;
        if let Some(markdown) = self.markdown.take() {
            self.put(&markdown.finish())?;
        }
        if !self.at_line_start && !was_reasoning {
            self.write("\n")?;
        }
        if let Some(mut wrap) = self.wrap.take() {
            self.out.write_all(wrap.finish().as_bytes())?;
        }
        self.out.flush()
    }

    fn end_reasoning(&mut self) -> io::Result<()> {
        if self.place != Place::Reasoning {
            return Ok(());
        }
        self.place = Place::Content;
        if !self.at_line_start {
            self.write("\n")?;
        }
        match self.style {
            ReasoningStyle::Tagged => self.write("</think>\n\n"),
            _ => {
                self.put(RESET)?;
                self.write("\n")
            }
        }
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        if let Some(last) = text.chars().next_back() {
            self.at_line_start = last == '\n';
        }
        let shown = self.shown(text).into_owned();
        self.put(&shown)
    }

    /// Writes what may be written, lines broken between words.
    fn put(&mut self, text: &str) -> io::Result<()> {
        match &mut self.wrap {
            Some(wrap) => {
                let wrapped = wrap.push(text);
                self.out.write_all(wrapped.as_bytes())
            }
            None => self.out.write_all(text.as_bytes()),
        }
    }

    /// The text as it may be written.
    fn shown<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if self.for_terminal {
            printable(text)
        } else {
            text.into()
        }
    }
}

/// The text without what a terminal would obey: what a model says or a file is called must not
/// move the cursor, set titles or ring.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if text.contains(is_command) {
        text.replace(is_command, "\u{fffd}").into()
    } else {
        text.into()
    }
}

/// Whether a terminal takes a character for a command.
fn is_command(c: char) -> bool {
    c.is_control() && !matches!(c, '\n' | '\t')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(style: ReasoningStyle, for_terminal: bool, deltas: &[(bool, &str)]) -> String {
        let mut out = Vec::new();
        let mut writer = ReplyWriter::new(&mut out, style, for_terminal);
        for (is_reasoning, text) in deltas {
            match is_reasoning {
                true => writer.reasoning(text).unwrap(),
                false => writer.content(text).unwrap(),
            }
        }
        writer.finish().unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_reply_ends_its_line_once_and_reasoning_stands_apart() {
        use ReasoningStyle::*;
        let reply = [(true, "so"), (true, " so"), (false, "4"), (false, "2")];
        for (style, deltas, expected) in [
            (Hidden, &reply[..], "42\n"),
            (Dimmed, &reply, "\x1b[2mso so\n\x1b[0m\n42\n"),
            (Tagged, &reply, "<think>\nso so\n</think>\n\n42\n"),
            (Hidden, &[(false, "42\n")], "42\n"),
            (Hidden, &[(false, "`4`\n")], "`4`\n"),
            (
                Dimmed,
                &[(false, "`4"), (false, "`\n")],
                "\x1b[36m`4`\x1b[0m\n",
            ),
            (Dimmed, &[(false, "#")], "#\n"),
            (Hidden, &[], ""),
            (Dimmed, &[], ""),
            // Cut off while thinking.
            (Dimmed, &reply[..1], "\x1b[2mso\n\x1b[0m\n"),
            (Tagged, &reply[..1], "<think>\nso\n</think>\n\n"),
            (Hidden, &reply[..1], ""),
        ] {
            assert_eq!(
                written(style, true, deltas),
                expected,
                "{style:?} {deltas:?}"
            );
        }
    }

    #[test]
    fn on_a_narrow_terminal_words_stay_whole() {
        let mut out = Vec::new();
        let writer = ReplyWriter::new(&mut out, ReasoningStyle::Dimmed, true);
        let mut writer = writer.wrapped(Some(10));
        writer.reasoning("thinking of words").unwrap();
        writer.content("**strong wo").unwrap();
        writer.content("rds** here").unwrap();
        writer.finish().unwrap();
        let shown = String::from_utf8(out).unwrap();
        assert_eq!(
            shown,
            "\x1b[2mthinking\nof words\n\x1b[0m\n**\x1b[1mstrong\nwords**\x1b[0m\nhere\n"
        );
    }

    #[test]
    fn a_terminal_gets_no_commands_from_the_model_and_a_file_gets_every_byte() {
        let text = [(false, "a\x1b]0;title\x07b\tc\r\n")];
        let shown = written(ReasoningStyle::Dimmed, true, &text);
        assert_eq!(shown, "a\u{fffd}]0;title\u{fffd}b\tc\u{fffd}\n");
        let piped = written(ReasoningStyle::Hidden, false, &text);
        assert_eq!(piped, "a\x1b]0;title\x07b\tc\r\n");
    }
}
