//! What chat and text completions have in common: the objects with `choices`, and the members
//! that both requests spell alike.

use ds4_engine::SamplingOptions;
use serde_json::{Map, Value, json};

use crate::api::fields::Fields;
use crate::api::{Document, Frame, Ping, RequestContext, error, wishes};
use crate::generation::{Failure, Finish, Outcome, OutputSchema, ReplyEvent, Usage};

/// Most likely tokens that may be asked for.
pub(crate) const MAX_TOP_LOGPROBS: usize = 20;

/// Where a stream tells what it used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UsageReport {
    /// Nowhere.
    #[default]
    None,
    /// In a chunk of its own without choices; every chunk before it says null.
    OwnChunk,
    /// In the last chunk with a choice.
    LastChoice,
}

/// What every object of one reply says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Envelope {
    /// The reply's id, prefix included.
    pub id: String,
    /// Seconds since 1970 when the request came.
    pub created: u64,
    /// The model name to echo.
    pub model: String,
    /// Names what a seed's effect depends on: build, weights, machine. Left out when there is none.
    pub system_fingerprint: Option<String>,
    /// What of the request is not done, told once, at the end.
    pub warnings: Vec<String>,
    /// Which of the reply's choices this is, from 0.
    pub choice: usize,
    /// Whether the reply has more choices than this, so that its end is written behind all of them.
    pub is_part: bool,
}

impl Envelope {
    pub(crate) fn new(prefix: &str, model: &str, context: &RequestContext) -> Envelope {
        Envelope {
            id: format!("{prefix}{}", (context.new_id)()),
            created: context.now_unix,
            model: model.to_owned(),
            system_fingerprint: context.system_fingerprint.clone(),
            warnings: Vec::new(),
            choice: 0,
            is_part: false,
        }
    }

    /// That of one of several choices.
    pub(crate) fn of_choice(&self, choice: usize) -> Envelope {
        Envelope {
            choice,
            is_part: true,
            ..self.clone()
        }
    }

    fn object(&self, kind: &str, choices: Value) -> Map<String, Value> {
        let mut object = Map::new();
        let mut put = |name: &str, value: Value| {
            object.insert(name.to_owned(), value);
        };
        put("id", self.id.as_str().into());
        put("object", kind.into());
        put("created", self.created.into());
        put("model", self.model.as_str().into());
        if let Some(fingerprint) = &self.system_fingerprint {
            put("system_fingerprint", fingerprint.as_str().into());
        }
        put("choices", choices);
        object
    }

    fn put_warnings(&self, object: &mut Map<String, Value>) {
        if !self.warnings.is_empty() {
            object.insert("warnings".to_owned(), self.warnings.clone().into());
        }
    }

    /// The body of a reply that is not streamed. `choice` has all but its finish reason.
    ///
    /// A cancelled reply has no body of its own: the answer is an error object.
    pub(crate) fn complete(&self, kind: &str, mut choice: Value, outcome: &Outcome) -> Value {
        let Some(reason) = finish_reason(&outcome.finish) else {
            return error::cancelled();
        };
        choice["index"] = self.choice.into();
        choice["finish_reason"] = reason.into();
        let mut object = self.object(kind, json!([choice]));
        put_usage(&mut object, outcome);
        self.put_warnings(&mut object);
        object.into()
    }
}

/// Writes the chunks of one reply, up to exactly one end: a finish reason and `[DONE]`, or an
/// error.
#[derive(Clone, Debug)]
pub(crate) struct Chunks {
    envelope: Envelope,
    kind: &'static str,
    usage: UsageReport,
    /// Tokens of the prompt that were in a cache.
    n_cached: usize,
    ended: bool,
}

impl Chunks {
    pub(crate) fn new(envelope: Envelope, kind: &'static str, usage: UsageReport) -> Chunks {
        Chunks {
            envelope,
            kind,
            usage,
            n_cached: 0,
            ended: false,
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// A chunk with one choice, which has no finish reason.
    pub(crate) fn choice(&self, choice: Value) -> Frame {
        Frame::data(&self.choice_object(choice, Value::Null).into())
    }

    fn choice_object(&self, mut choice: Value, finish_reason: Value) -> Map<String, Value> {
        choice["index"] = self.envelope.choice.into();
        choice["finish_reason"] = finish_reason;
        let mut object = self.envelope.object(self.kind, json!([choice]));
        if self.usage == UsageReport::OwnChunk {
            object.insert("usage".to_owned(), Value::Null);
        }
        object
    }

    /// How much of the prompt is done, beside a choice that is `empty`. Nothing for an event that
    /// does not say so.
    pub(crate) fn progress(&mut self, event: &ReplyEvent, empty: Value) -> Option<Frame> {
        let (n_done, n_prompt) = match event {
            ReplyEvent::Started { n_cached, .. } => {
                self.n_cached = *n_cached;
                return None;
            }
            ReplyEvent::Progress { n_done, n_prompt } => (n_done, n_prompt),
            _ => return None,
        };
        let mut object = self.choice_object(empty, Value::Null);
        let progress = json!({"total": n_prompt, "cache": self.n_cached, "processed": n_done});
        object.insert("prompt_progress".to_owned(), progress);
        Some(Frame::data(&object.into()))
    }

    /// The end of a reply: `empty` with its finish reason, what was used, `[DONE]`.
    pub(crate) fn finish(&mut self, outcome: &Outcome, empty: Value, frames: &mut Vec<Frame>) {
        let Some(reason) = finish_reason(&outcome.finish) else {
            return self.end(&error::cancelled(), frames);
        };
        let mut last = self.choice_object(empty, reason.into());
        if self.usage == UsageReport::LastChoice && !self.envelope.is_part {
            put_usage(&mut last, outcome);
        }
        self.envelope.put_warnings(&mut last);
        frames.push(Frame::data(&last.into()));
        if !self.envelope.is_part {
            let own_chunk = self.usage == UsageReport::OwnChunk;
            self.close(outcome, own_chunk, frames);
        }
        self.ended = true;
    }

    /// The end of a reply of several choices, which have all ended.
    pub(crate) fn close_all(&self, together: &Outcome) -> Vec<Frame> {
        let mut frames = Vec::new();
        self.close(together, self.usage != UsageReport::None, &mut frames);
        frames
    }

    fn close(&self, outcome: &Outcome, tells_usage: bool, frames: &mut Vec<Frame>) {
        if tells_usage {
            let mut object = self.envelope.object(self.kind, json!([]));
            put_usage(&mut object, outcome);
            frames.push(Frame::data(&object.into()));
        }
        frames.push(Frame::done());
    }

    /// An error, behind which the stream closes without `[DONE]`.
    pub(crate) fn fail(&mut self, failure: &Failure, frames: &mut Vec<Frame>) {
        self.end(&error::in_stream(failure), frames);
    }

    fn end(&mut self, error: &Value, frames: &mut Vec<Frame>) {
        frames.push(Frame::data(error));
        self.ended = true;
    }

    /// Says that the connection is alive, by a comment or by a chunk of a choice that is `empty`.
    pub(crate) fn keep_alive(&self, ping: Ping, empty: Value) -> Vec<Frame> {
        match (self.ended, ping) {
            (true, _) => Vec::new(),
            (false, Ping::Comment) => vec![Frame::comment("ping")],
            (false, Ping::Chunk) => vec![self.choice(empty)],
        }
    }
}

/// `None` for a reply that the client does not get to the end.
fn finish_reason(finish: &Finish) -> Option<&'static str> {
    match finish {
        Finish::Stop | Finish::StopString(_) => Some("stop"),
        Finish::ToolCalls => Some("tool_calls"),
        Finish::Length | Finish::ContextFull => Some("length"),
        Finish::Cancelled => None,
    }
}

fn put_usage(object: &mut Map<String, Value>, outcome: &Outcome) {
    object.insert("usage".to_owned(), usage(&outcome.usage));
    object.insert("timings".to_owned(), timings(outcome));
}

fn usage(usage: &Usage) -> Value {
    let n_missed = usage.n_prompt.saturating_sub(usage.n_cached);
    json!({
        "prompt_tokens": usage.n_prompt,
        "completion_tokens": usage.n_generated,
        "total_tokens": usage.n_prompt + usage.n_generated,
        "prompt_tokens_details": {
            "cached_tokens": usage.n_cached,
            "cache_write_tokens": n_missed,
        },
        "completion_tokens_details": {"reasoning_tokens": usage.n_reasoning},
        "prompt_cache_hit_tokens": usage.n_cached,
        "prompt_cache_miss_tokens": n_missed,
    })
}

/// Where the time went, in the words of llama.cpp's clients.
fn timings(outcome: &Outcome) -> Value {
    let Usage {
        n_prompt,
        n_cached,
        n_generated,
        ..
    } = outcome.usage;
    let timings = &outcome.timings;
    let ms = |duration: std::time::Duration| duration.as_secs_f64() * 1e3;
    let (prompt_ms, predicted_ms) = (ms(timings.prefill), ms(timings.decode));
    // A rate of nothing, or in no time, is 0: JSON has no infinity.
    let over = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
    let n_computed = n_prompt.saturating_sub(n_cached);
    json!({
        "cache_n": n_cached,
        "prompt_n": n_computed,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": over(prompt_ms, n_computed as f64),
        "prompt_per_second": over(n_computed as f64 * 1e3, prompt_ms),
        "predicted_n": n_generated,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": over(predicted_ms, n_generated as f64),
        "predicted_per_second": over(n_generated as f64 * 1e3, predicted_ms),
        "queue_ms": ms(timings.queue),
        "cache_source": timings.cache_source,
    })
}

/// The sampling members, those included that only these two APIs have.
pub(crate) fn sampling(fields: &Fields) -> Result<SamplingOptions, Failure> {
    let mut options = wishes::sampling(fields)?;
    // llama.cpp's name of the same member.
    if fields.get("repetition_penalty").is_none()
        && let Some(penalty) = fields.number("repeat_penalty")?
    {
        if penalty <= 0.0 {
            return Err(fields.mismatch("repeat_penalty", "a positive number"));
        }
        options.repetition_penalty = penalty;
    }
    if let Some(bias) = fields.object("logit_bias")? {
        for (token, bias_of) in bias.members() {
            let id = token.parse::<u32>().ok();
            let value = bias_of.as_f64().filter(|b| (-100.0..=100.0).contains(b));
            let (Some(id), Some(value)) = (id, value) else {
                let expected = "an object of token ids, each with a number from -100 to 100";
                return Err(fields.mismatch("logit_bias", expected));
            };
            options.logit_bias.push((id, value as f32));
        }
    }
    Ok(options)
}

/// Choices of one reply to one prompt.
pub(crate) const MAX_CHOICES: usize = 8;

/// How many choices a request wants. The older API also has `best_of`, which must be as many: the
/// choices are not ranked.
pub(crate) fn n_choices(fields: &Fields) -> Result<usize, Failure> {
    let n = fields.count("n")?;
    if n.is_some_and(|n| !(1..=MAX_CHOICES).contains(&n)) {
        return Err(fields.mismatch("n", &format!("1 to {MAX_CHOICES}")));
    }
    let best_of = fields.count("best_of")?;
    if best_of.is_some_and(|best_of| best_of != n.unwrap_or(1)) {
        return Err(fields.unsupported("best_of", "choices are not ranked, expected as many as n"));
    }
    Ok(n.unwrap_or(1))
}

/// One body of the bodies of every choice.
pub(crate) fn join(bodies: Vec<Value>, together: &Outcome) -> Value {
    let mut bodies = bodies.into_iter();
    let mut body = bodies.next().unwrap_or_default();
    for mut other in bodies {
        if other.get("error").is_some() {
            return other;
        }
        if let (Some(choices), Some(Value::Array(more))) =
            (body["choices"].as_array_mut(), other.get_mut("choices"))
        {
            choices.append(more);
        }
    }
    if let Value::Object(members) = &mut body
        && !members.contains_key("error")
    {
        put_usage(members, together);
    }
    body
}

/// What the choices of a reply used together. `n_choices` of them answer the same prompt, which
/// counts once.
pub fn together(outcomes: &[Outcome], n_choices: usize) -> Option<Outcome> {
    let mut whole = outcomes.first()?.clone();
    for (i, outcome) in outcomes.iter().enumerate().skip(1) {
        let (usage, timings) = (&mut whole.usage, &mut whole.timings);
        if i % n_choices.max(1) == 0 {
            usage.n_prompt += outcome.usage.n_prompt;
            usage.n_cached += outcome.usage.n_cached;
        }
        usage.n_generated += outcome.usage.n_generated;
        usage.n_reasoning += outcome.usage.n_reasoning;
        timings.n_prefilled += outcome.timings.n_prefilled;
        // They are made side by side.
        timings.queue = timings.queue.max(outcome.timings.queue);
        timings.prefill = timings.prefill.max(outcome.timings.prefill);
        timings.decode = timings.decode.max(outcome.timings.decode);
    }
    Some(whole)
}

/// The limit that the first of `names` sets, or `default`.
pub(crate) fn max_tokens(
    fields: &Fields,
    names: &[&str],
    default: usize,
) -> Result<Option<usize>, Failure> {
    let mut limit = None;
    for name in names {
        let found = fields.count(name)?;
        limit = limit.or(found);
    }
    Ok(Some(limit.unwrap_or(default)))
}

pub(crate) fn usage_report(
    fields: &Fields,
    context: &RequestContext,
) -> Result<UsageReport, Failure> {
    let options = fields.object("stream_options")?;
    let wants = match &options {
        Some(options) => options.flag("include_usage", false)?,
        None => false,
    };
    Ok(match wants {
        true => UsageReport::OwnChunk,
        false if context.preferences.always_usage => UsageReport::LastChoice,
        false => UsageReport::None,
    })
}

/// What says that requests belong together.
pub(crate) fn affinity(
    fields: &Fields,
    context: &RequestContext,
) -> Result<Option<String>, Failure> {
    let names = [
        "x-session-affinity",
        "x-session-id",
        "session_id",
        "session-id",
    ];
    let header = names.iter().find_map(|name| context.headers.get(*name));
    Ok(match header {
        Some(session) => Some(session.clone()),
        None => fields.optional_str("prompt_cache_key")?.map(str::to_owned),
    })
}

/// What the content must look like.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct OutputFormat {
    /// The schema that it follows.
    pub(crate) schema: Option<OutputSchema>,
    /// The schema that the prompt shows.
    pub(crate) shown: Option<Value>,
}

impl OutputFormat {
    fn of_schema(schema: OutputSchema) -> OutputFormat {
        OutputFormat {
            shown: Some(schema.schema.clone()),
            schema: Some(schema),
        }
    }
}

/// Reads `response_format` and the members by which other servers ask for the same.
pub(crate) fn output_format(fields: &Fields) -> Result<OutputFormat, Failure> {
    for name in ["grammar", "guided_grammar", "guided_regex", "guided_choice"] {
        if fields.get(name).is_some() {
            return Err(fields.unsupported(name, NO_GRAMMAR));
        }
    }
    if let Some(format) = fields.object("response_format")? {
        return response_format(&format);
    }
    for name in ["json_schema", "guided_json"] {
        if let Some(schema) = schema(fields, name)? {
            return Ok(OutputFormat::of_schema(schema));
        }
    }
    if let Some(outputs) = fields.object("structured_outputs")? {
        for name in ["grammar", "regex", "choice", "structural_tag"] {
            if outputs.get(name).is_some() {
                return Err(outputs.unsupported(name, NO_GRAMMAR));
            }
        }
        if let Some(schema) = schema(&outputs, "json")? {
            return Ok(OutputFormat::of_schema(schema));
        }
    }
    Ok(OutputFormat::default())
}

const NO_GRAMMAR: &str = "output can be constrained by a JSON schema only; use response_format";

fn response_format(format: &Fields) -> Result<OutputFormat, Failure> {
    let found = match format.str("type")? {
        "text" => return Ok(OutputFormat::default()),
        "json_object" => match schema(format, "schema")? {
            Some(schema) => Some(schema),
            None => {
                return Ok(OutputFormat {
                    schema: Some(OutputSchema {
                        schema: json!({"type": "object"}),
                        strict: true,
                        place: format.path().to_owned(),
                    }),
                    shown: None,
                });
            }
        },
        "json_schema" => match format.object("json_schema")? {
            Some(named) => schema(&named, "schema")?,
            // The Responses API has the schema at this level.
            None => schema(format, "schema")?,
        },
        other => {
            let expected = "text, json_object or json_schema";
            return Err(format.unknown_word("type", other, expected));
        }
    };
    match found {
        Some(schema) => Ok(OutputFormat::of_schema(schema)),
        None => Err(format.mismatch("json_schema", "an object with a schema")),
    }
}

/// A schema, as an object or as the text of one, strict where `strict` beside it says so.
pub(crate) fn schema(owner: &Fields, name: &str) -> Result<Option<OutputSchema>, Failure> {
    let schema = match owner.get(name) {
        None => return Ok(None),
        Some(schema) => match schema.as_text() {
            Some(text) => match Document::read(&text) {
                Ok(text) => Some(schema.beside(text.json().raw()).value()?),
                Err(_) => None,
            },
            None => Some(schema.value()?),
        },
    };
    match schema {
        Some(schema @ Value::Object(_)) => Ok(Some(OutputSchema {
            schema,
            strict: owner.flag("strict", false)?,
            place: owner.path_of(name),
        })),
        _ => Err(owner.mismatch(name, "a JSON schema")),
    }
}
