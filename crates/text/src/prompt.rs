//! A rendered prompt: its text, and which parts of it came from a client.

use std::ops::Range;

/// What marker text inside client text becomes.
///
/// The publisher's encoder escapes nothing: a user message that contains the characters
/// `<｜Assistant｜>` becomes that token, and can so put words into the model's mouth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MarkerText {
    /// The marker's token, as the publisher's encoder has it.
    Allow,
    /// The same characters as ordinary tokens. Holds for BOS, EOS, pad, user, assistant, latest
    /// reminder, task and fill-in-the-middle markers; `<think>`, `</think>` and `｜DSML｜` stay
    /// tokens, because coding agents legitimately carry them.
    #[default]
    Defuse,
}

/// Text to be tokenised as a whole, with the byte ranges of what is not template.
///
/// The ranges must not be tokenised one by one: pieces of the splitter cross from template into
/// content (`>` joins a newline that follows), and separate tokenisation would give other ids
/// than the model was trained on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// The whole prompt.
    pub text: String,
    /// Byte ranges of `text` that came from a client: ascending, disjoint, not empty.
    pub untrusted: Vec<Range<usize>>,
    /// What marker text in those ranges becomes.
    pub marker_text: MarkerText,
    /// Where the assistant messages stand.
    pub replies: Vec<ReplySpan>,
    /// Where the parts of the conversation begin, ascending. Empty for raw text.
    pub landmarks: Vec<Landmark>,
}

/// Where a part of the conversation begins in a prompt. It ends where the next one begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Landmark {
    /// Byte of the text.
    pub at: usize,
    /// Index of the message among those rendered; of an [`Passage::Opening`], that of the message
    /// before it.
    pub message: usize,
    /// What begins.
    pub passage: Passage,
}

/// What a part of a prompt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// The begin marker and the effort text.
    Head,
    /// The text of a system or developer message.
    System,
    /// Its tool schemas.
    Tools,
    /// Its response format.
    ResponseFormat,
    /// A user's text.
    User,
    /// A tool result.
    ToolResult,
    /// A reminder.
    Reminder,
    /// The markers by which the model is asked for a reply, a think marker last.
    Opening,
    /// A reply of the model.
    Reply,
}

/// Where an assistant message stands in a prompt.
///
/// A marker stands on either side (one of the think markers that end a generation prompt before
/// it, the end-of-sentence marker behind it unless it is open-ended), so the tokens that the model
/// wrote can take the place of the text without changing a token around them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplySpan {
    /// The message's index among those rendered.
    pub message: usize,
    /// Byte range of the text: reasoning and `</think>` if they are written, content, calls.
    pub range: Range<usize>,
}

impl Prompt {
    /// The part from byte `at` on, to be tokenised behind a state that covers what is before.
    /// `None` when `at` is outside the text or inside a character.
    pub fn tail(&self, at: usize) -> Option<Prompt> {
        self.part(at..self.text.len())
    }

    /// The part in a byte range, to be tokenised by itself: right only where the range begins and
    /// ends at a marker or at an end of the text. `None` when an end is outside the text or inside
    /// a character.
    pub fn part(&self, range: Range<usize>) -> Option<Prompt> {
        let text = self.text.get(range.clone())?.to_owned();
        let within = |r: &Range<usize>| {
            r.start.clamp(range.start, range.end) - range.start
                ..r.end.clamp(range.start, range.end) - range.start
        };
        let untrusted = self.untrusted.iter().map(within).filter(|r| !r.is_empty());
        let replies = self
            .replies
            .iter()
            .filter(|reply| range.start <= reply.range.start && reply.range.end <= range.end);
        let landmarks = self.landmarks.iter().filter(|l| range.contains(&l.at));
        Some(Prompt {
            text,
            untrusted: untrusted.collect(),
            marker_text: self.marker_text,
            landmarks: landmarks
                .map(|landmark| Landmark {
                    at: landmark.at - range.start,
                    ..*landmark
                })
                .collect(),
            replies: replies
                .map(|reply| ReplySpan {
                    message: reply.message,
                    range: within(&reply.range),
                })
                .collect(),
        })
    }

    /// Notes that a part begins here.
    pub(crate) fn landmark(&mut self, message: usize, passage: Passage) {
        self.landmarks.push(Landmark {
            at: self.text.len(),
            message,
            passage,
        });
    }

    /// Appends text of the template.
    pub(crate) fn template(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Appends text that came from a client.
    pub(crate) fn client(&mut self, text: &str) {
        let start = self.text.len();
        self.text.push_str(text);
        let end = self.text.len();
        match self.untrusted.last_mut() {
            _ if start == end => {}
            Some(last) if last.end == start => last.end = end,
            _ => self.untrusted.push(start..end),
        }
    }
}
