//! A request's conversation to the tokens that the model continues.

use std::sync::Arc;

use ds4_text::{
    Effort, MarkerText, Message, Mode, Passage, Prompt, RenderOptions, Revision, Role, Start,
    Tokenizer, markers, render,
};

use crate::generation::{Endpoint, Failure, FailureKind, Generation, PromptSource};
use crate::turns::{PrefixKeys, PromptKey, Turns, prompt_key};

/// Bytes of a token beyond which a text is taken for one that may be too long for its context.
const USUAL_BYTES: usize = 8;
/// Bytes of a text that are counted at once.
const PIECE_BYTES: usize = 64 << 10;
/// Tokens that a piece has more than its part of the whole text, at most, because it is cut out.
const CUT_TOKENS: usize = 256;

/// Which reasoning of old turns stays in the prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReasoningHistory {
    /// As the publisher has it: all of it while tools are declared, else that of the last turn.
    Official,
    /// Also all of it when the conversation has calls or results but declares no tools, so that a
    /// request without tools at the end of an agent's session keeps the cached prefix.
    #[default]
    Sticky,
}

/// How prompts are rendered, for all requests of a server.
#[derive(Clone, Copy, Debug, Default)]
pub struct PromptRules {
    /// Which weights the prompts are for.
    pub revision: Revision,
    /// What marker text in client text becomes.
    pub marker_text: MarkerText,
    /// Which reasoning of old turns stays.
    pub reasoning_history: ReasoningHistory,
    /// Smallest context, in tokens, in which maximum effort is not lowered; 0 is any.
    pub max_effort_min_context: usize,
}

/// A prompt, ready for the engine.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenPrompt {
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Tokens of the context that are left for the reply.
    pub n_left: usize,
    /// Lengths at which other conversations are likely to depart: the ends of the system text
    /// with its tools, and of what stands before the last message of the first turn.
    pub anchors: Vec<usize>,
    /// Its length before the last text of the user; 0 without one.
    pub last_user: usize,
    /// What the model's first character belongs to.
    pub start: Start,
    /// Names its text, canonically rendered, or the tokens that the client sent.
    pub key: PromptKey,
    /// Whether the text ends in `<think>`.
    pub thinking: bool,
    /// The effort really used.
    pub effort: Effort,
    /// Whether the client's own text holds the DSML marker.
    pub mentions_dsml: bool,
    /// Assistant messages that stand in the model's own tokens.
    pub n_replayed: usize,
    /// Assistant messages that were rendered from text.
    pub n_rendered: usize,
    /// Where its messages and their parts begin, ascending; none in raw text.
    pub places: Vec<Place>,
}

/// Where a part of the conversation begins in the tokens of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Byte of all tokens' bytes together. Where turns stand in the model's own tokens, that is
    /// another byte than that of the canonical text.
    pub byte: usize,
    /// Index of the message among those of the conversation.
    pub message: usize,
    /// What begins.
    pub passage: Passage,
}

/// A prompt's tokens and what became of its parts.
struct Encoded {
    tokens: Vec<u32>,
    n_replayed: usize,
    /// For every replayed reply: where its text begins, and how many bytes its own tokens have more
    /// (or, negative, less) than that text.
    replays: Vec<(usize, isize)>,
}

/// Renders prompts.
#[derive(Clone)]
pub struct Prompter {
    tokenizer: Arc<Tokenizer>,
    turns: Arc<Turns>,
    rules: PromptRules,
    context: usize,
    /// Bytes of the longest token.
    max_token_bytes: usize,
}

impl Prompter {
    /// For a model with this tokenizer and so many tokens of context.
    pub fn new(
        tokenizer: Arc<Tokenizer>,
        turns: Arc<Turns>,
        rules: PromptRules,
        context: usize,
    ) -> Prompter {
        let tokens = 0..tokenizer.n_vocab() as u32;
        let lengths = tokens.map(|token| tokenizer.token_bytes(token).len());
        Prompter {
            max_token_bytes: lengths.max().unwrap_or_default().max(1),
            tokenizer,
            turns,
            rules,
            context,
        }
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The prompt's text as it is rendered, without the model's own tokens in it.
    ///
    /// # Errors
    /// Messages that have no rendering.
    pub fn text(&self, generation: &Generation) -> Result<Prompt, Failure> {
        let messages = match &generation.prompt {
            PromptSource::Messages(messages) => messages,
            PromptSource::Tokens(tokens) => {
                let text = self.tokenizer.decode(tokens).map_err(|e| Failure {
                    kind: FailureKind::Invalid,
                    message: format!("prompt: {e}."),
                    param: Some("prompt".to_owned()),
                })?;
                return Ok(Prompt {
                    text,
                    ..Prompt::default()
                });
            }
            PromptSource::Text(text) => {
                let bos = if text.starts_with(markers::BOS) {
                    ""
                } else {
                    markers::BOS
                };
                return Ok(Prompt {
                    text: format!("{bos}{text}"),
                    // Whoever writes raw text writes its markers too.
                    marker_text: MarkerText::Allow,
                    ..Prompt::default()
                });
            }
        };
        let options = RenderOptions {
            mode: generation.thinking.mode,
            effort: self.effort(generation),
            drop_thinking: !(generation.keeps_reasoning || self.keeps_reasoning(messages)),
            revision: self.rules.revision,
            marker_text: self.rules.marker_text,
            ..RenderOptions::default()
        };
        let mut prompt = render(messages, &options).map_err(|e| Failure {
            kind: FailureKind::Invalid,
            message: e.to_string(),
            param: Some("messages".to_owned()),
        })?;
        // A reply to be continued that has no content yet goes on with its reasoning.
        if options.mode == Mode::Thinking
            && let Some(last) = messages.last().filter(|m| m.open_ended)
            && last.content.is_empty()
            && prompt.text.ends_with(markers::THINK_CLOSE)
        {
            let end = prompt.text.len() - markers::THINK_CLOSE.len();
            prompt = prompt.part(0..end).unwrap_or(prompt);
        }
        Ok(prompt)
    }

    /// Renders and tokenizes, with the model's own tokens where a message repeats a turn of its.
    ///
    /// # Errors
    /// Messages that have no rendering, or a prompt that leaves no room in the context for a
    /// token.
    pub fn tokens(&self, generation: &Generation) -> Result<TokenPrompt, Failure> {
        let prompt = self.text(generation)?;
        // What is far too long however its text is cut into tokens is not cut.
        let n_least = prompt.text.len() / self.max_token_bytes;
        if n_least > self.context.saturating_mul(2)
            && !matches!(generation.prompt, PromptSource::Tokens(_))
        {
            return Err(overflow(generation.endpoint, n_least, self.context));
        }
        // Nor is the rest of one whose beginning fills the context.
        if prompt.text.len() > self.context.saturating_mul(USUAL_BYTES)
            && !matches!(generation.prompt, PromptSource::Tokens(_))
        {
            let n_least = tokens_at_least(&self.tokenizer, &prompt.text, self.context);
            if n_least > self.context {
                return Err(overflow(generation.endpoint, n_least, self.context));
            }
        }
        let Encoded {
            tokens,
            n_replayed,
            replays,
        } = self.encode_text(generation, &prompt);
        let limit = self.context.saturating_sub(1);
        if tokens.len() > limit {
            return Err(overflow(generation.endpoint, tokens.len(), self.context));
        }
        let open = match &generation.prompt {
            PromptSource::Messages(messages) => messages.last().filter(|m| m.open_ended),
            PromptSource::Text(_) | PromptSource::Tokens(_) => None,
        };
        let thinking = prompt.text.ends_with(markers::THINK_OPEN);
        let start = match (&generation.prompt, open) {
            (PromptSource::Text(_) | PromptSource::Tokens(_), _) => Start::WithinContent,
            (_, Some(message)) if !message.content.is_empty() => Start::WithinContent,
            (_, Some(_)) if generation.thinking.mode == Mode::Thinking => Start::WithinReasoning,
            _ if thinking => Start::Reasoning,
            _ => Start::Content,
        };
        let protocol = self.tokenizer.protocol();
        let anchors = anchors(&tokens, protocol.user, protocol.assistant);
        let places = places(&prompt, &replays);
        let said = places
            .iter()
            .rfind(|place| place.passage == Passage::User)
            .map_or(0, |place| place.byte);
        let last_user = self.tokens_within(&tokens, said);
        Ok(TokenPrompt {
            n_left: self.context.saturating_sub(tokens.len()),
            tokens,
            anchors,
            last_user,
            start,
            key: match &generation.prompt {
                // Their text may be that of other tokens; no rendered prompt reads like a list.
                PromptSource::Tokens(tokens) => prompt_key(&format!("{tokens:?}")),
                PromptSource::Messages(_) | PromptSource::Text(_) => prompt_key(&prompt.text),
            },
            thinking,
            effort: self.effort(generation),
            mentions_dsml: prompt
                .untrusted
                .iter()
                .any(|range| prompt.text[range.clone()].contains(markers::DSML)),
            n_replayed,
            n_rendered: prompt.replies.len() - n_replayed,
            places,
        })
    }

    /// How many tokens have at most so many bytes.
    fn tokens_within(&self, tokens: &[u32], n_bytes: usize) -> usize {
        let mut left = n_bytes;
        let fits = |token: &&u32| {
            let rest = left.checked_sub(self.tokenizer.token_bytes(**token).len());
            left = rest.unwrap_or(0);
            rest.is_some()
        };
        tokens.iter().take_while(fits).count()
    }

    /// The tokens of a prompt, also of one that is too long.
    ///
    /// # Errors
    /// Messages that have no rendering.
    pub fn encode(&self, generation: &Generation) -> Result<Vec<u32>, Failure> {
        let prompt = self.text(generation)?;
        Ok(self.encode_text(generation, &prompt).tokens)
    }

    fn encode_text(&self, generation: &Generation, prompt: &Prompt) -> Encoded {
        match &generation.prompt {
            PromptSource::Messages(messages) => self.with_turns(prompt, messages),
            PromptSource::Text(_) => Encoded {
                tokens: self.tokenizer.encode_prompt(prompt),
                n_replayed: 0,
                replays: Vec::new(),
            },
            PromptSource::Tokens(tokens) => Encoded {
                tokens: tokens.clone(),
                n_replayed: 0,
                replays: Vec::new(),
            },
        }
    }

    /// The effort to render: maximum effort needs room.
    fn effort(&self, generation: &Generation) -> Effort {
        match generation.thinking.effort {
            Effort::Max if self.context < self.rules.max_effort_min_context => Effort::High,
            effort => effort,
        }
    }

    fn keeps_reasoning(&self, messages: &[Message]) -> bool {
        self.rules.reasoning_history == ReasoningHistory::Sticky
            && messages
                .iter()
                .any(|m| m.role == Role::Tool || !m.tool_calls.is_empty())
    }

    /// Tokenizes around the turns that are remembered.
    fn with_turns(&self, prompt: &Prompt, messages: &[Message]) -> Encoded {
        let mut tokens = Vec::new();
        let mut n_replayed = 0;
        let mut written = 0;
        let mut hashed = 0;
        let mut keys = PrefixKeys::default();
        let mut replays = Vec::new();
        for reply in &prompt.replies {
            let message = &messages[reply.message];
            let range = reply.range.clone();
            let key = keys.extend(&prompt.text[hashed..range.start]);
            hashed = range.start;
            if message.open_ended {
                continue;
            }
            let before = &prompt.text[..range.start];
            let turn = self
                .turns
                .find(message, key, before.ends_with(markers::THINK_OPEN));
            let (Some(turn), Some(part)) = (turn, prompt.part(written..range.start)) else {
                continue;
            };
            tokens.extend(self.tokenizer.encode_prompt(&part));
            tokens.extend_from_slice(&turn.tokens);
            written = range.end;
            let lengths = turn
                .tokens
                .iter()
                .map(|t| self.tokenizer.token_bytes(*t).len());
            let n_bytes: usize = lengths.sum();
            replays.push((range.start, n_bytes as isize - range.len() as isize));
            n_replayed += 1;
        }
        if let Some(rest) = prompt.tail(written) {
            tokens.extend(self.tokenizer.encode_prompt(&rest));
        }
        Encoded {
            tokens,
            n_replayed,
            replays,
        }
    }
}

/// Where the parts of a prompt stand among its tokens' bytes.
fn places(prompt: &Prompt, replays: &[(usize, isize)]) -> Vec<Place> {
    let place = |landmark: &ds4_text::Landmark| {
        let before = replays.iter().take_while(|(start, _)| *start < landmark.at);
        let more: isize = before.map(|(_, more)| more).sum();
        Place {
            byte: landmark.at.saturating_add_signed(more),
            message: landmark.message,
            passage: landmark.passage,
        }
    };
    prompt.landmarks.iter().map(place).collect()
}

/// The first user's marker, and the last one before the assistant first speaks. In a client's text
/// markers are no marker tokens.
fn anchors(tokens: &[u32], user: u32, assistant: u32) -> Vec<usize> {
    let first_turn = tokens.iter().position(|t| *t == assistant);
    let before = &tokens[..first_turn.unwrap_or(tokens.len())];
    let first = before.iter().position(|t| *t == user);
    let last = before.iter().rposition(|t| *t == user);
    let mut anchors: Vec<usize> = first.into_iter().chain(last).filter(|at| *at > 0).collect();
    anchors.dedup();
    anchors
}

/// Tokens that a text has at least, counted piece by piece until they are more than `enough`.
fn tokens_at_least(tokenizer: &Tokenizer, text: &str, enough: usize) -> usize {
    let (mut n, mut rest) = (0, text);
    while !rest.is_empty() && n <= enough {
        let (piece, after) = rest.split_at(rest.floor_char_boundary(PIECE_BYTES));
        n += tokenizer.encode(piece).len().saturating_sub(CUT_TOKENS);
        rest = after;
    }
    n
}

/// The failure of a prompt that is too long, in the words that clients look for.
fn overflow(endpoint: Endpoint, found: usize, context: usize) -> Failure {
    let (message, param) = match endpoint {
        Endpoint::Messages => (
            format!(
                "prompt is too long: {found} tokens > {} maximum",
                context - 1
            ),
            "messages",
        ),
        Endpoint::Chat => (in_openai_words(found, context, "messages"), "messages"),
        Endpoint::Completions => (in_openai_words(found, context, "prompt"), "prompt"),
        Endpoint::Responses => (in_openai_words(found, context, "messages"), "input"),
    };
    Failure {
        kind: FailureKind::ContextOverflow {
            n_prompt: found,
            n_context: context,
        },
        message,
        param: Some(param.to_owned()),
    }
}

fn in_openai_words(found: usize, context: usize, what: &str) -> String {
    format!(
        "This model's maximum context length is {context} tokens. However, your {what} resulted \
         in {found} tokens. Please reduce the length of the {what}."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_fills_a_context_is_not_read_to_its_end() {
        let document = include_str!("../../../testdata/text/small_tokenizer.json");
        let tokenizer = Tokenizer::from_tokenizer_json(document).expect("a vocabulary");
        let text = "Stones lie in the river, \u{e9}t\u{e9} comme hiver; \t 1234567.\n".repeat(6000);
        let n = tokenizer.encode(&text).len();
        let counted = tokens_at_least(&tokenizer, &text, usize::MAX);
        assert!(counted <= n && counted > n - n / 50, "{counted} of {n}");
        let some = tokens_at_least(&tokenizer, &text, 1000);
        assert!(some > 1000 && some < n / 2, "{some}");
        // Only what is cut apart can have more tokens in pieces.
        let runs = format!("{}{}", " ".repeat(300_000), "=".repeat(300_000));
        let n = tokenizer.encode(&runs).len();
        assert!(tokens_at_least(&tokenizer, &runs, usize::MAX) <= n);
    }

    #[test]
    fn conversations_depart_at_the_users_of_the_first_turn() {
        const BOS: u32 = 0;
        const USER: u32 = 1;
        const ASSISTANT: u32 = 2;
        let anchors = |tokens: &[u32]| anchors(tokens, USER, ASSISTANT);
        assert_eq!(anchors(&[BOS, 7, 7, USER, 8, ASSISTANT, 9]), [3]);
        assert_eq!(anchors(&[BOS, 7, USER, 8, USER, 9, ASSISTANT, 9]), [2, 4]);
        let later = [BOS, 7, USER, 8, ASSISTANT, 9, USER, 8, ASSISTANT];
        assert_eq!(anchors(&later), [2]);
        assert_eq!(anchors(&[BOS, 7, 7]), [0; 0]);
        assert_eq!(anchors(&[USER, 7, 7]), [0; 0]);
    }
}
