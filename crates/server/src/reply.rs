//! One reply as its tokens arrive: text, events, and what the sampler is told.

use std::sync::Arc;

use ds4_engine::{Constraint, FinishReason, NotFinite, TokenLogprobs, TokenSet};
use ds4_text::{EndReason, Event, Phase, ReplyParser, Start, Tokenizer, ToolSchemas, Utf8Stream};

use crate::calls::{CallReader, MARKUP_OPEN};
use crate::generation::{
    Call, Failure, FailureKind, Finish, Generation, ReplyEvent, TokenLogprob, ToolChoice,
};
use crate::id::new_id;
use crate::prompt::TokenPrompt;
use crate::schema::SchemaReader;
use crate::stop_strings::StopStrings;
use crate::turns::Turn;

/// What opens a block of calls, up to the name.
const CALL_OPENING: &str = "\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"";
/// The tag that opens a block.
const BLOCK_OPEN: &str = "<｜DSML｜tool_calls>";
/// What stands behind the name.
const NAME_CLOSING: &str = "\">\n";
/// Bytes at the end of a reply in which the beginning of a block is looked for.
const OPENING_BYTES: usize = 512;
/// What closes a block behind a call.
const BLOCK_CLOSING: &str = "\n</｜DSML｜tool_calls>";

/// Tokens that are left beside those that end the content, when it is ended.
const SPARE_TOKENS: usize = 3;
/// Tokens that are left, beside twice those that end the content, when it begins nothing new.
const LAST_TOKENS: usize = 48;

/// What follows from a token.
#[derive(Debug, Default)]
pub struct Step {
    /// What to tell the client.
    pub events: Vec<ReplyEvent>,
    /// Tokens to put behind it.
    pub force: Vec<u32>,
    /// Whether the reply is over.
    pub ends: bool,
}

/// A reply that is over.
#[derive(Debug)]
pub struct Ended {
    /// The last events before the end.
    pub events: Vec<ReplyEvent>,
    /// Why it ended, or what went wrong.
    pub finish: Result<Finish, Failure>,
    /// Its reasoning.
    pub reasoning: String,
    /// Its content.
    pub content: String,
    /// Its calls.
    pub calls: Vec<Call>,
    /// Tokens generated.
    pub n_generated: usize,
    /// Of them, tokens of reasoning.
    pub n_reasoning: usize,
    /// The turn to remember, when the client will see all of it.
    pub turn: Option<Turn>,
}

/// A reply in the making.
pub struct ReplyInProgress {
    generation: Arc<Generation>,
    tokenizer: Arc<Tokenizer>,
    prompt: TokenPrompt,
    bytes: Utf8Stream,
    parser: ReplyParser,
    stop: StopStrings,
    stopped_at: Option<String>,
    /// The whole text, for when a block cannot be read.
    text: String,
    tokens: Vec<u32>,
    in_reasoning: bool,
    /// Reasoning tokens after which it is ended.
    budget: Option<usize>,
    n_reasoning: usize,
    reasoning: String,
    content: String,
    calls: Vec<Call>,
    malformed: Option<String>,
    /// Tokens whose text has not been let through.
    held_logprobs: Vec<TokenLogprob>,
    /// What keeps a block of calls well-formed.
    block: Option<CallReader>,
    /// The last bytes, while no block has begun.
    tail: Vec<u8>,
    /// Whether the block of calls was opened on the model's behalf.
    opened: bool,
    schema: Option<SchemaReader>,
}

impl ReplyInProgress {
    /// A reply to a prompt.
    pub fn new(
        generation: Arc<Generation>,
        tokenizer: Arc<Tokenizer>,
        prompt: TokenPrompt,
        schema: Option<SchemaReader>,
        block: Option<CallReader>,
    ) -> ReplyInProgress {
        let tools: ToolSchemas = if generation.tool_choice == ToolChoice::None {
            ToolSchemas::default()
        } else {
            let schema = |tool: &crate::generation::Tool| {
                (tool.name.clone(), tool.function["parameters"].clone())
            };
            generation.tools.iter().map(schema).collect()
        };
        ReplyInProgress {
            bytes: Utf8Stream::default(),
            parser: ReplyParser::new(prompt.start, tools),
            stop: StopStrings::new(generation.stop.clone()),
            stopped_at: None,
            text: String::new(),
            tokens: Vec::new(),
            in_reasoning: matches!(prompt.start, Start::Reasoning | Start::WithinReasoning),
            budget: generation.thinking.budget,
            n_reasoning: 0,
            reasoning: String::new(),
            content: String::new(),
            calls: Vec::new(),
            malformed: None,
            held_logprobs: Vec::new(),
            block,
            tail: Vec::new(),
            opened: false,
            schema,
            generation,
            tokenizer,
            prompt,
        }
    }

    /// The tokens so far, those forced included.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Their text, without the beginning of an unfinished character.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Of the tokens, those of reasoning.
    pub fn n_reasoning(&self) -> usize {
        self.n_reasoning
    }

    /// Tokens that the reply begins with whatever the model would say: a call that must be made
    /// without thinking. They belong behind the prompt.
    pub fn opening(&mut self) -> Step {
        let mut step = Step::default();
        if !self.in_reasoning {
            self.open_call(&mut step);
        }
        self.close_in_time(&mut step);
        step
    }

    /// Tokens that this reply may still have.
    fn n_left(&self) -> usize {
        let limit = self.generation.max_tokens.unwrap_or(usize::MAX);
        let limit = limit.min(self.prompt.n_left);
        limit.saturating_sub(self.tokens.len())
    }

    /// Ends content that follows a schema while there are tokens left to end it with, and reasoning
    /// while there are any for the content.
    fn close_in_time(&mut self, step: &mut Step) {
        let is_calling = self.block.as_ref().is_some_and(CallReader::has_begun);
        let n_left = self.n_left();
        let Some(schema) = &mut self.schema else {
            return;
        };
        if step.ends || is_calling || self.opened || n_left > 2 * schema.n_least() + LAST_TOKENS {
            return;
        }
        if self.in_reasoning {
            if n_left <= schema.n_least() + SPARE_TOKENS + 1 {
                let close = self.tokenizer.protocol().think_close;
                self.take_forced(&[close], step);
                self.close_in_time(step);
            }
            return;
        }
        if self.parser.phase() != Phase::Content {
            return;
        }
        if let Some(closing) = schema.ending(n_left, SPARE_TOKENS)
            && !closing.is_empty()
        {
            for token in &closing {
                schema.push(*token);
            }
            self.take_forced(&closing, step);
        }
    }

    /// What holds for the next token.
    ///
    /// # Errors
    /// What the content must follow can no longer be followed. The reply has no end then.
    pub fn constraint(&mut self) -> Result<Constraint, Failure> {
        let phase = self.parser.phase();
        let protocol = self.tokenizer.protocol();
        let mut forbidden: Vec<u32> = protocol
            .pad
            .into_iter()
            .chain(protocol.latest_reminder)
            .collect();
        let no_tools =
            self.generation.tools.is_empty() || self.generation.tool_choice == ToolChoice::None;
        if no_tools && phase != Phase::Reasoning && !self.prompt.mentions_dsml {
            forbidden.push(protocol.dsml);
        }
        if self.generation.ignore_eos {
            forbidden.extend(stop_tokens(&self.tokenizer));
        }
        let must_go_on =
            self.schema.is_some() || matches!(self.generation.tool_choice, ToolChoice::Required(_));
        if phase == Phase::Reasoning && must_go_on && !self.generation.ignore_eos {
            // What was asked for comes behind the reasoning.
            forbidden.extend(stop_tokens(&self.tokenizer));
        }
        let follows = self.schema.as_ref().is_some_and(SchemaReader::has_begun);
        if follows && phase == Phase::Content && !forbidden.contains(&protocol.dsml) {
            // In a string it would look like the beginning of a block.
            forbidden.push(protocol.dsml);
        }
        let allowed = match &mut self.block {
            Some(block) if block.has_begun() => block.admitted().map_err(|reason| Failure {
                kind: FailureKind::Unsupported,
                message: format!("the reply's calls can no longer follow their schemas: {reason}"),
                param: Some("tools".to_owned()),
            })?,
            _ if phase == Phase::Content => self.schema_allows(!no_tools)?.map(Arc::new),
            _ => None,
        };
        Ok(Constraint {
            greedy: phase == Phase::Markup,
            forbidden,
            allowed,
        })
    }

    /// Tokens that keep the content on its schema. A call may stand in the content's place.
    fn schema_allows(&mut self, may_call: bool) -> Result<Option<TokenSet>, Failure> {
        let n_left = self.n_left();
        let Some(schema) = &mut self.schema else {
            return Ok(None);
        };
        let ends_soon = n_left <= 2 * schema.n_least() + LAST_TOKENS;
        let wanted = &self.generation.schema;
        let lost = |reason: String| Failure {
            kind: FailureKind::Unsupported,
            message: format!("the reply can no longer follow its schema: {reason}"),
            param: wanted.as_ref().map(|schema| schema.place.clone()),
        };
        if may_call && !schema.has_begun() {
            let dsml = self.tokenizer.protocol().dsml;
            if self.text.ends_with('<') {
                let mut only = TokenSet::empty(self.tokenizer.n_vocab());
                only.insert(dsml);
                return Ok(Some(only));
            }
            let mut set = schema.allowed(ends_soon).map_err(lost)?;
            for text in ["\n", "\n\n", "<"] {
                if let [token] = self.tokenizer.encode(text)[..] {
                    set.insert(token);
                }
            }
            return Ok(Some(set));
        }
        schema.allowed(ends_soon).map(Some).map_err(lost)
    }

    /// A token that was sampled.
    pub fn push(&mut self, token: u32, logprobs: Option<TokenLogprobs>) -> Step {
        let mut step = Step::default();
        let was_reasoning = self.in_reasoning;
        let was_content = self.parser.phase() == Phase::Content;
        self.take(token, logprobs, &mut step);
        if step.ends {
            return step;
        }
        if let Some(schema) = &mut self.schema
            && was_content
            && self.calls.is_empty()
        {
            // What may begin a call is none of the schema's business.
            let bytes = self.tokenizer.token_bytes(token);
            let may_be_call = !self.generation.tools.is_empty()
                && bytes.iter().all(|b| matches!(b, b'\n' | b'<'));
            if schema.has_begun() || !may_be_call {
                schema.push(token);
            }
        }
        if self.in_reasoning && self.budget.is_some_and(|budget| self.n_reasoning >= budget) {
            let close = self.tokenizer.protocol().think_close;
            self.take_forced(&[close], &mut step);
        }
        if was_reasoning && !self.in_reasoning && !step.ends {
            self.open_call(&mut step);
        }
        self.close_in_time(&mut step);
        step
    }

    /// Ends the reasoning, if it is going on: at once, or with the first token.
    pub fn end_reasoning(&mut self) -> Step {
        let mut step = Step::default();
        if self.tokens.is_empty() {
            self.budget = Some(0);
        } else if self.in_reasoning {
            let close = self.tokenizer.protocol().think_close;
            self.take_forced(&[close], &mut step);
            if !step.ends {
                self.open_call(&mut step);
            }
        }
        step
    }

    /// The end.
    pub fn finish(mut self, reason: FinishReason) -> Ended {
        let mut step = Step::default();
        let tail = std::mem::take(&mut self.bytes).finish();
        self.text.push_str(&tail);
        let mut events = self.parser.push(&tail);
        let end = match reason {
            FinishReason::Stop => EndReason::Stop,
            FinishReason::Length | FinishReason::ContextFull => EndReason::Length,
            FinishReason::Cancelled | FinishReason::NotFinite => EndReason::Cancelled,
        };
        let parser = std::mem::replace(
            &mut self.parser,
            ReplyParser::new(Start::Content, ToolSchemas::default()),
        );
        // A reply that ended itself has no more to say.
        let over = self.stopped_at.is_some() || self.malformed.is_some();
        let (more, read) = parser.finish(end);
        if !over {
            events.extend(more);
            self.read(events, &mut step);
        }
        if self.stopped_at.is_none() {
            self.release_content(&mut step);
        }
        let finish = if reason == FinishReason::NotFinite {
            Err(Failure {
                kind: FailureKind::Internal,
                message: NotFinite.to_string(),
                param: None,
            })
        } else if let Some(stop) = self.stopped_at.take() {
            Ok(Finish::StopString(stop))
        } else if let Some(detail) = self.malformed.take() {
            let shown = self.generation.stream && !self.calls.is_empty();
            if shown {
                Err(Failure {
                    kind: FailureKind::Internal,
                    message: format!("the model wrote a tool call that cannot be read: {detail}"),
                    param: None,
                })
            } else {
                self.calls.clear();
                let block = read.block_start.unwrap_or(self.text.len());
                let raw = self.text.get(block..).unwrap_or_default().to_owned();
                self.content.push_str(&raw);
                if !raw.is_empty() {
                    step.events.push(ReplyEvent::Content {
                        text: raw,
                        logprobs: std::mem::take(&mut self.held_logprobs),
                    });
                }
                Ok(Finish::Stop)
            }
        } else {
            Ok(match reason {
                FinishReason::Length => Finish::Length,
                FinishReason::ContextFull => Finish::ContextFull,
                FinishReason::Cancelled | FinishReason::NotFinite => Finish::Cancelled,
                FinishReason::Stop if self.calls.is_empty() => Finish::Stop,
                FinishReason::Stop => Finish::ToolCalls,
            })
        };
        // What a client will send back whole is worth finding again.
        let whole = match finish {
            Ok(Finish::Stop | Finish::ToolCalls) => true,
            // What was cut short in its reasoning has no end that the next prompt could go on from.
            Ok(Finish::Length | Finish::ContextFull | Finish::Cancelled) => {
                self.calls.is_empty() && !self.in_reasoning
            }
            _ => false,
        };
        let turn = (whole && !self.tokens.is_empty()).then(|| Turn {
            prompt: self.prompt.key,
            thinking: self.prompt.thinking,
            tokens: self.tokens.clone(),
            reasoning: self.reasoning.clone(),
            content: self.content.clone(),
            calls: self.calls.clone(),
        });
        Ended {
            events: step.events,
            finish,
            reasoning: self.reasoning,
            content: self.content,
            calls: self.calls,
            n_generated: self.tokens.len(),
            n_reasoning: self.n_reasoning,
            turn,
        }
    }

    /// Opens a block of calls when one must be made.
    fn open_call(&mut self, step: &mut Step) {
        let ToolChoice::Required(names) = &self.generation.tool_choice else {
            return;
        };
        if self.opened || !self.calls.is_empty() || self.parser.phase() != Phase::Content {
            return;
        }
        self.opened = true;
        let all: Vec<String> = self
            .generation
            .tools
            .iter()
            .map(|t| t.name.clone())
            .collect();
        let names = if names.is_empty() { &all } else { names };
        let mut text = CALL_OPENING.to_owned();
        if let [name] = names.as_slice() {
            text.push_str(name);
            text.push_str(NAME_CLOSING);
        }
        let tokens = self.tokenizer.encode(&text);
        self.take_forced(&tokens, step);
    }

    /// Reads tokens that the model did not choose.
    fn take_forced(&mut self, tokens: &[u32], step: &mut Step) {
        for &token in tokens {
            if step.ends {
                return;
            }
            step.force.push(token);
            self.take(token, None, step);
        }
    }

    fn take(&mut self, token: u32, logprobs: Option<TokenLogprobs>, step: &mut Step) {
        self.tokens.push(token);
        if self.in_reasoning {
            self.n_reasoning += 1;
        }
        let protocol = self.tokenizer.protocol();
        let is_marker = token == protocol.think_open || token == protocol.think_close;
        if let Some(logprobs) = logprobs
            && !is_marker
        {
            let bytes = |id: u32| self.tokenizer.token_bytes(id).to_vec();
            self.held_logprobs.push(TokenLogprob {
                bytes: bytes(token),
                logprob: logprobs.logprob,
                top: logprobs
                    .top
                    .iter()
                    .map(|(id, l)| (bytes(*id), *l))
                    .collect(),
            });
        }
        let text = self.bytes.push(self.tokenizer.token_bytes(token));
        self.text.push_str(&text);
        let events = self.parser.push(&text);
        self.read(events, step);
        self.follow_block(token);
        self.in_reasoning = match self.parser.phase() {
            Phase::Reasoning => true,
            // A tag in the reasoning may still turn out to be text.
            Phase::Markup => self.in_reasoning && self.calls.is_empty(),
            Phase::Content | Phase::Value | Phase::Done => false,
        };
        if matches!(self.parser.phase(), Phase::Markup | Phase::Value) {
            // Tokens of calls are not reported.
            self.held_logprobs.clear();
        }
    }

    /// Reads a token with what keeps a block well-formed: from the block's first marker on, or, where
    /// that may be text (in reasoning, or when the client's own text has it), from where the
    /// parser takes it for a block.
    fn follow_block(&mut self, token: u32) {
        let Some(block) = &mut self.block else {
            return;
        };
        let bytes = self.tokenizer.token_bytes(token);
        let admitted = if block.has_begun() {
            block.push(token)
        } else {
            let n_before = self.tail.len();
            self.tail.extend_from_slice(bytes);
            let last = |text: &str| {
                let mut all = self.tail.windows(text.len());
                all.rposition(|window| window == text.as_bytes())
            };
            let begins = if self.in_reasoning || self.prompt.mentions_dsml {
                last(BLOCK_OPEN).filter(|_| self.parser.is_in_block())
            } else {
                last(MARKUP_OPEN).filter(|at| at + MARKUP_OPEN.len() > n_before)
            };
            let admitted = begins.is_none_or(|at| {
                let behind = at + MARKUP_OPEN.len();
                block.push_text(&self.tail[behind..])
            });
            let n_old = self.tail.len().saturating_sub(OPENING_BYTES);
            self.tail.drain(..n_old);
            admitted
        };
        if !admitted {
            // Written in another way, which only the parser reads.
            self.block = None;
        }
    }

    fn read(&mut self, events: Vec<Event>, step: &mut Step) {
        for event in events {
            if step.ends {
                return;
            }
            match event {
                Event::ReasoningDelta(text) => {
                    self.reasoning.push_str(&text);
                    step.events.push(ReplyEvent::Reasoning {
                        text,
                        logprobs: std::mem::take(&mut self.held_logprobs),
                    });
                }
                Event::ContentDelta(text) => {
                    let scanned = self.stop.push(&text);
                    self.let_through(scanned, step);
                }
                Event::ToolStart { index, name } => {
                    self.release_content(step);
                    if step.ends {
                        return;
                    }
                    self.held_logprobs.clear();
                    let id = new_id("call_", 32);
                    self.calls.push(Call {
                        id: id.clone(),
                        name: name.clone(),
                        arguments: String::new(),
                        complete: false,
                    });
                    step.events.push(ReplyEvent::ToolStart { index, id, name });
                }
                Event::ToolArgsDelta { index, text } => {
                    if let Some(call) = self.calls.get_mut(index) {
                        call.arguments.push_str(&text);
                    }
                    step.events.push(ReplyEvent::ToolArguments { index, text });
                }
                Event::ToolEnd { index } => {
                    if let Some(call) = self.calls.get_mut(index) {
                        call.complete = true;
                    }
                    step.events.push(ReplyEvent::ToolEnd { index });
                    if !self.generation.parallel_tool_calls {
                        // The next prompt closes the block as the model would have.
                        let closing = match self.text.ends_with('\n') {
                            true => BLOCK_CLOSING.trim_start(),
                            false => BLOCK_CLOSING,
                        };
                        self.tokens.extend(self.tokenizer.encode(closing));
                        step.ends = true;
                    }
                }
                Event::BlockDone => step.ends = true,
                Event::Malformed { detail } => {
                    self.malformed = Some(detail);
                    step.ends = true;
                }
            }
        }
    }

    /// Lets through the content that was held back.
    fn release_content(&mut self, step: &mut Step) {
        let scanned = self.stop.finish();
        self.let_through(scanned, step);
    }

    fn let_through(&mut self, scanned: crate::stop_strings::Scanned, step: &mut Step) {
        if !scanned.text.is_empty() {
            self.content.push_str(&scanned.text);
            step.events.push(ReplyEvent::Content {
                text: scanned.text,
                logprobs: std::mem::take(&mut self.held_logprobs),
            });
        }
        if scanned.stop.is_some() {
            self.stopped_at = scanned.stop;
            step.ends = true;
        }
    }
}

/// Tokens that end a reply: the end marker, and those that begin another turn.
pub fn stop_tokens(tokenizer: &Tokenizer) -> Vec<u32> {
    let protocol = tokenizer.protocol();
    vec![
        protocol.eos,
        protocol.user,
        protocol.assistant,
        protocol.bos,
    ]
}
