//! The OpenAI Completions API: `/v1/completions`. Text in, text out: no turns, no reasoning that
//! is told apart, no calls.

use std::time::Duration;

use ds4_text::{Effort, Message, Mode};
use serde_json::{Map, Value, json};

use crate::api::choices::{self, Chunks, Envelope, MAX_TOP_LOGPROBS, UsageReport};
use crate::api::fields::{Fields, PathStyle};
use crate::api::json::{Json, Kind};
use crate::api::logprobs::{Logprobs, finite};
use crate::api::{CompletionsPrompt, Document, Frame, Ping, RequestContext, wishes};
use crate::generation::{
    Endpoint, Failure, Finish, Generation, Outcome, PromptSource, ReplyEvent, Thinking,
    TokenLogprob, ToolChoice,
};

/// What body and chunks alike call themselves.
const OBJECT: &str = "text_completion";

/// Before the text that comes before the hole.
const FIM_BEGIN: &str = "<｜fim▁begin｜>";
/// The hole.
const FIM_HOLE: &str = "<｜fim▁hole｜>";
/// Behind the text that comes behind the hole.
const FIM_END: &str = "<｜fim▁end｜>";
/// The system text of a prompt that is what a user says.
const CHAT_SYSTEM_TEXT: &str = "You are a helpful assistant.";

/// A request, read.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// What to generate.
    pub generation: Generation,
    /// How to write the reply.
    pub reply: ReplyShape,
}

/// What an encoder needs to know of the request and of the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplyShape {
    /// What every object says; its id is `cmpl-` and random hex digits.
    pub envelope: Envelope,
    /// Where a stream tells what it used.
    pub usage: UsageReport,
    /// How a stream says that it is alive.
    pub ping: Ping,
    /// Whether to list the log probabilities of the text.
    pub logprobs: bool,
    /// Whether a stream tells how much of the prompt is done.
    pub progress: bool,
    /// Whether the stop string that ended the text is part of it.
    pub shows_stop: bool,
    /// What the text begins with: the prompt, when the client wants it back.
    pub echo: String,
    /// The same of the prompts behind the first.
    pub more_echoes: Vec<String>,
}

impl ReplyShape {
    /// That of one of several choices, of which every prompt has `n_choices`.
    pub(crate) fn of_choice(&self, choice: usize, n_choices: usize) -> ReplyShape {
        let echo = match choice / n_choices.max(1) {
            0 => Some(&self.echo),
            prompt => self.more_echoes.get(prompt - 1),
        };
        ReplyShape {
            envelope: self.envelope.of_choice(choice),
            echo: echo.cloned().unwrap_or_default(),
            more_echoes: Vec::new(),
            ..self.clone()
        }
    }
}

/// Reads a request to `/v1/completions`.
///
/// # Errors
/// A member of another shape, or a wish that is not granted; members we do not know are ignored.
pub fn parse<'a>(
    body: impl Into<Document<'a>>,
    context: &RequestContext,
) -> Result<Parsed, Failure> {
    let body = body.into();
    let fields = Fields::of_body(body.json(), PathStyle::Brackets)?;
    let model = fields.optional_str("model")?.unwrap_or(&context.model_id);
    wishes::check_model(model, context)?;
    let n_choices = choices::n_choices(&fields)?;
    let (mut prompts, mut echoes): (Vec<PromptSource>, Vec<String>) =
        prompts(&fields, context)?.into_iter().unzip();
    let more_prompts = prompts.split_off(1);
    let n_top_logprobs = match fields.get("logprobs").and_then(Json::as_bool) {
        Some(false) => None,
        Some(true) => Some(0),
        None => fields.count("logprobs")?,
    };
    if n_top_logprobs.is_some_and(|n| n > MAX_TOP_LOGPROBS) {
        return Err(fields.mismatch("logprobs", "an integer from 0 to 20"));
    }
    let wants_echo = fields.flag("echo", false)?;
    if wants_echo && n_top_logprobs.is_some() {
        let why =
            "log probabilities of the prompt are not computed, expected false beside logprobs";
        return Err(fields.unsupported("echo", why));
    }
    let format = choices::output_format(&fields)?;
    let default_max_tokens = context
        .preferences
        .completions_max_tokens
        .unwrap_or(context.default_max_tokens);
    let generation = Generation {
        endpoint: Endpoint::Completions,
        model: model.to_owned(),
        prompt: prompts.swap_remove(0),
        more_prompts,
        n_choices,
        thinking: Thinking {
            mode: Mode::Chat,
            effort: Effort::None,
            budget: None,
        },
        tools: Vec::new(),
        tool_choice: ToolChoice::None,
        parallel_tool_calls: true,
        schema: format.schema,
        sampling: choices::sampling(&fields)?,
        max_tokens: choices::max_tokens(&fields, &["max_tokens"], default_max_tokens)?,
        stop: wishes::stop_strings(&fields, "stop")?,
        n_top_logprobs,
        ignore_eos: fields.flag("ignore_eos", false)?,
        stream: fields.flag("stream", false)?,
        affinity: choices::affinity(&fields, context)?,
        use_cache: fields.flag("cache_prompt", true)?,
        keeps_reasoning: false,
    };
    let reply = ReplyShape {
        envelope: Envelope::new("cmpl-", model, context),
        usage: choices::usage_report(&fields, context)?,
        ping: context.preferences.ping,
        logprobs: n_top_logprobs.is_some(),
        progress: fields.flag("return_progress", false)?,
        shows_stop: fields.flag("include_stop_str_in_output", false)?,
        echo: match wants_echo {
            true => echoes.remove(0),
            false => String::new(),
        },
        more_echoes: match wants_echo {
            true => echoes,
            false => Vec::new(),
        },
    };
    Ok(Parsed { generation, reply })
}

/// The prompts, and what of each is text that can be said back.
fn prompts(
    fields: &Fields,
    context: &RequestContext,
) -> Result<Vec<(PromptSource, String)>, Failure> {
    let is_chat = context.preferences.completions_prompt == CompletionsPrompt::Chat;
    let suffix = fields.optional_str("suffix")?;
    let all = raw_prompts(fields)?;
    if all.iter().any(|raw| matches!(raw, RawPrompt::Tokens(_))) {
        for (name, is_there) in [
            ("suffix", suffix.is_some()),
            ("echo", fields.flag("echo", false)?),
        ] {
            if is_there {
                return Err(fields.unsupported(name, "the prompt is token ids, expected text"));
            }
        }
        if is_chat {
            let why = "prompts are what a user says here, expected a string";
            return Err(fields.unsupported("prompt", why));
        }
    } else if is_chat && suffix.is_some() {
        let why = "prompts are what a user says here, expected no suffix";
        return Err(fields.unsupported("suffix", why));
    } else if !is_chat && !fields.flag("add_bos", true)? {
        let why = "prompts of text begin with the begin-of-sentence token; send token ids to leave it out";
        return Err(fields.unsupported("add_bos", why));
    }
    let prompt = |raw: RawPrompt| match raw {
        RawPrompt::Tokens(tokens) => (PromptSource::Tokens(tokens), String::new()),
        RawPrompt::Text(text) => {
            let source = match suffix {
                _ if is_chat => PromptSource::Messages(vec![
                    Message::system(CHAT_SYSTEM_TEXT),
                    Message::user(text.clone()),
                ]),
                Some(suffix) => {
                    PromptSource::Text(format!("{FIM_BEGIN}{text}{FIM_HOLE}{suffix}{FIM_END}"))
                }
                None => PromptSource::Text(text.clone()),
            };
            (source, text)
        }
    };
    Ok(all.into_iter().map(prompt).collect())
}

/// Prompts of one request.
const MAX_PROMPTS: usize = 32;

enum RawPrompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// The prompts of a request, one or more: a string, token ids, or a list of these.
fn raw_prompts(fields: &Fields) -> Result<Vec<RawPrompt>, Failure> {
    let expected = "a string, an array of token ids, or an array of these";
    let mismatch = || fields.mismatch("prompt", expected);
    let one = |value: Json<'_>| -> Result<RawPrompt, Failure> {
        let prompt = match value.kind() {
            Kind::Text => value
                .as_text()
                .map(|text| RawPrompt::Text(text.into_owned())),
            Kind::Array => token_ids(value)?.map(RawPrompt::Tokens),
            _ => None,
        };
        prompt.ok_or_else(mismatch)
    };
    let found = fields.get("prompt").ok_or_else(mismatch)?;
    // The first item of a list tells one of prompts from one of ids.
    let (mut first, mut n_items) = (Kind::Nothing, 0);
    if found.kind() == Kind::Array {
        found.each(|item| {
            if n_items == 0 {
                first = item.kind();
            }
            n_items += 1;
            Ok(())
        })?;
    }
    if !matches!(first, Kind::Text | Kind::Array) {
        return Ok(vec![one(found)?]);
    }
    if n_items > MAX_PROMPTS {
        return Err(fields.mismatch("prompt", &format!("at most {MAX_PROMPTS} prompts")));
    }
    let mut prompts = Vec::new();
    found.each(|item| {
        prompts.push(one(item)?);
        Ok(())
    })?;
    Ok(prompts)
}

/// `None` for what is no list of ids, or an empty one.
fn token_ids(list: Json<'_>) -> Result<Option<Vec<u32>>, Failure> {
    let (mut ids, mut all) = (Vec::new(), true);
    list.each(|item| {
        let id = item.as_u64().and_then(|id| u32::try_from(id).ok());
        all &= id.is_some();
        ids.extend(id);
        Ok(())
    })?;
    Ok((all && !ids.is_empty()).then_some(ids))
}

/// The body of a reply that is not streamed.
///
/// `logprobs` are those of its events, where the client asked for them. A cancelled reply has no
/// body of its own: the answer is an error object.
pub fn complete(outcome: &Outcome, logprobs: &Logprobs, shape: &ReplyShape) -> Value {
    let mut text = shape.echo.clone();
    let mut lists = TokenLists::behind(&text);
    text.push_str(&outcome.reasoning);
    text.push_str(&outcome.content);
    text.push_str(shown_stop(outcome, shape));
    let listed = match shape.logprobs {
        true => lists.next(logprobs.reasoning.iter().chain(&logprobs.content)),
        false => Value::Null,
    };
    let choice = json!({"text": text, "index": 0, "logprobs": listed});
    shape.envelope.complete(OBJECT, choice, outcome)
}

/// What of a stop string stands in the text.
fn shown_stop<'a>(outcome: &'a Outcome, shape: &ReplyShape) -> &'a str {
    match &outcome.finish {
        Finish::StopString(text) if shape.shows_stop => text,
        _ => "",
    }
}

/// Writes the four parallel lists in which this API has its log probabilities; null for no token.
#[derive(Clone, Debug)]
struct TokenLists {
    /// Characters of the text before the next token.
    n_chars: usize,
}

impl TokenLists {
    fn behind(text: &str) -> TokenLists {
        TokenLists {
            n_chars: text.chars().count(),
        }
    }

    fn next<'a>(&mut self, tokens: impl IntoIterator<Item = &'a TokenLogprob>) -> Value {
        let mut texts: Vec<Value> = Vec::new();
        let mut values: Vec<Value> = Vec::new();
        let mut tops: Vec<Value> = Vec::new();
        let mut offsets: Vec<Value> = Vec::new();
        for token in tokens {
            let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            texts.push(lossy(&token.bytes).into());
            values.push(finite(token.logprob).into());
            let top: Map<String, Value> = token
                .top
                .iter()
                .map(|(bytes, logprob)| (lossy(bytes), finite(*logprob).into()))
                .collect();
            tops.push(top.into());
            offsets.push(self.n_chars.into());
            // A character counts for the token that has its first byte.
            let is_first = |byte: &&u8| **byte & 0xc0 != 0x80;
            self.n_chars += token.bytes.iter().filter(is_first).count();
        }
        if texts.is_empty() {
            return Value::Null;
        }
        json!({
            "tokens": texts,
            "token_logprobs": values,
            "top_logprobs": tops,
            "text_offset": offsets,
        })
    }
}

/// Writes the chunks of one reply.
///
/// The stream ends with exactly one `[DONE]` behind a finish reason, or one error; whatever comes
/// after is answered with nothing.
#[derive(Clone, Debug)]
pub struct Stream {
    chunks: Chunks,
    shape: ReplyShape,
    opened: bool,
    lists: TokenLists,
}

impl Stream {
    /// A stream that has sent nothing.
    pub fn new(shape: ReplyShape) -> Stream {
        Stream {
            chunks: Chunks::new(shape.envelope.clone(), OBJECT, shape.usage),
            lists: TokenLists::behind(&shape.echo),
            shape,
            opened: false,
        }
    }

    /// The prompt, when the client wants it back, to be sent with the headers.
    pub fn open(&mut self) -> Vec<Frame> {
        if self.opened || self.chunks.has_ended() {
            return Vec::new();
        }
        self.opened = true;
        let mut frames = Vec::new();
        let echo = std::mem::take(&mut self.shape.echo);
        self.text(&echo, &[], &mut frames);
        frames
    }

    /// What one event of the worker becomes.
    pub fn event(&mut self, event: &ReplyEvent) -> Vec<Frame> {
        if self.chunks.has_ended() {
            return Vec::new();
        }
        let mut frames = Vec::new();
        if !matches!(event, ReplyEvent::Failed(_)) {
            frames = self.open();
        }
        match event {
            ReplyEvent::Started { .. } | ReplyEvent::Progress { .. } => {
                let empty = self.choice("", Value::Null);
                let progress = self.chunks.progress(event, empty);
                frames.extend(progress.filter(|_| self.shape.progress));
            }
            // Raw text has no parts: what would be reasoning elsewhere is text here.
            ReplyEvent::Reasoning { text, logprobs } | ReplyEvent::Content { text, logprobs } => {
                self.text(text, logprobs, &mut frames);
            }
            ReplyEvent::ToolStart { .. }
            | ReplyEvent::ToolArguments { .. }
            | ReplyEvent::ToolEnd { .. } => {}
            ReplyEvent::Finished(outcome) => {
                let stop = shown_stop(outcome, &self.shape).to_owned();
                self.text(&stop, &[], &mut frames);
                let empty = self.choice("", Value::Null);
                self.chunks.finish(outcome, empty, &mut frames);
            }
            ReplyEvent::Failed(failure) => self.chunks.fail(failure, &mut frames),
        }
        frames
    }

    /// A sign of life: clients hang up after minutes without a byte. `idle` is the time since the
    /// client was last sent anything.
    pub fn keep_alive(&mut self, _idle: Duration) -> Vec<Frame> {
        let empty = self.choice("", Value::Null);
        self.chunks.keep_alive(self.shape.ping, empty)
    }

    /// The end of a reply of several choices, which have all ended.
    pub fn close_all(&self, together: &Outcome) -> Vec<Frame> {
        self.chunks.close_all(together)
    }

    fn text(&mut self, text: &str, logprobs: &[TokenLogprob], frames: &mut Vec<Frame>) {
        if text.is_empty() && logprobs.is_empty() {
            return;
        }
        let listed = match self.shape.logprobs {
            true => self.lists.next(logprobs),
            false => Value::Null,
        };
        frames.push(self.chunks.choice(self.choice(text, listed)));
    }

    fn choice(&self, text: &str, logprobs: Value) -> Value {
        json!({"text": text, "index": 0, "logprobs": logprobs})
    }
}
