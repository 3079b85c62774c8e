//! Requests: from messages, tools and wishes to a [`Generation`].

use std::collections::{BTreeSet, HashSet};

use ds4_text::markers::{THINK_CLOSE, THINK_OPEN};
use ds4_text::{Effort, Message, Role, Task, ToolCall, json};
use serde_json::{Value, json};

use super::reply::{ReasoningDisplay, ReplyShape};
use crate::api::choices::{self, Envelope, MAX_TOP_LOGPROBS};
use crate::api::fields::{Fields, PathStyle};
use crate::api::json::{Json, Kind};
use crate::api::normalise::normalise;
use crate::api::tools::{self, INPUT};
use crate::api::wishes::{self, ThinkingWish};
use crate::api::{Document, Media, RequestContext, invalid, unsupported};
use crate::generation::{Endpoint, Failure, Generation, PromptSource, Thinking, Tool, ToolChoice};

/// Between the parts of a message that is not the model's own.
const PART_BREAK: &str = "\n\n";

/// A request, read.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// What to generate.
    pub generation: Generation,
    /// How to write the reply.
    pub reply: ReplyShape,
    /// What was left out of the request, for the log.
    pub warnings: Vec<String>,
}

/// Reads a request to `/v1/chat/completions`.
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
    refuse(&fields)?;

    let mut warnings = Vec::new();
    let (tools, custom_tools) = read_tools(&fields, context, &mut warnings)?;
    let tool_choice = tool_choice(&fields, &tools)?;
    let display = reasoning_display(&fields, context)?;
    let mut reader = Reader {
        display,
        media: context.preferences.media,
        messages: Vec::new(),
        call_ids: HashSet::new(),
        warnings,
    };
    let received = fields.objects("messages")?;
    for message in &received {
        reader.message(message)?;
    }
    let Reader {
        mut messages,
        warnings,
        ..
    } = reader;
    finish_conversation(&fields, &received, &mut messages)?;

    let format = choices::output_format(&fields)?;
    let shown = tools.iter().map(|tool| tool.function.clone()).collect();
    let messages = normalise(messages, shown, format.shown, "messages")?;
    let n_top_logprobs = n_top_logprobs(&fields)?;
    let limits = ["max_completion_tokens", "max_tokens"];
    let generation = Generation {
        endpoint: Endpoint::Chat,
        model: model.to_owned(),
        prompt: PromptSource::Messages(messages),
        more_prompts: Vec::new(),
        n_choices: choices::n_choices(&fields)?,
        thinking: thinking(&fields, model, context)?,
        tools,
        tool_choice,
        parallel_tool_calls: fields.flag("parallel_tool_calls", true)?,
        schema: format.schema,
        sampling: choices::sampling(&fields)?,
        max_tokens: choices::max_tokens(&fields, &limits, context.default_max_tokens)?,
        stop: wishes::stop_strings(&fields, "stop")?,
        n_top_logprobs,
        ignore_eos: fields.flag("ignore_eos", false)?,
        stream: fields.flag("stream", false)?,
        affinity: choices::affinity(&fields, context)?,
        use_cache: fields.flag("cache_prompt", true)?,
        keeps_reasoning: keeps_reasoning(&fields)?,
    };
    let reply = ReplyShape {
        envelope: Envelope::new("chatcmpl-", model, context),
        usage: choices::usage_report(&fields, context)?,
        ping: context.preferences.ping,
        reasoning: display,
        logprobs: n_top_logprobs.is_some(),
        progress: fields.flag("return_progress", false)?,
        shows_stop: fields.flag("include_stop_str_in_output", false)?,
        custom_tools,
    };
    Ok(Parsed {
        generation,
        reply,
        warnings,
    })
}

/// What is not offered and would change the answer.
fn refuse(fields: &Fields) -> Result<(), Failure> {
    for (name, instead) in [("functions", "tools"), ("function_call", "tool_choice")] {
        if fields.get(name).is_some() {
            let why = format!("the member of an older API is not read; use {instead}");
            return Err(fields.unsupported(name, &why));
        }
    }
    if fields
        .words("modalities")?
        .iter()
        .any(|word| word == "audio")
    {
        return Err(fields.unsupported("modalities", "this model writes text only, expected text"));
    }
    if fields.get("audio").is_some() {
        return Err(fields.unsupported("audio", "this model writes text only"));
    }
    Ok(())
}

/// Whether the reasoning of earlier turns stays, by the name of the publisher's own encoder.
fn keeps_reasoning(fields: &Fields) -> Result<bool, Failure> {
    let variables = fields.object("chat_template_kwargs")?;
    let dropped = match variables {
        Some(variables) => switch(&variables, "drop_thinking")?,
        None => None,
    };
    Ok(dropped == Some(false))
}

/// Everything that says whether and how hard to think, of which one client sends one spelling
/// and another two.
fn thinking(fields: &Fields, model: &str, context: &RequestContext) -> Result<Thinking, Failure> {
    let mut switches: Vec<bool> = Vec::new();
    let mut efforts: Vec<Effort> = Vec::new();
    let mut budgets: Vec<usize> = Vec::new();
    efforts.extend(wishes::effort(fields, "reasoning_effort")?);
    if let Some(reasoning) = fields.object("reasoning")? {
        switches.extend(switch(&reasoning, "enabled")?);
        efforts.extend(wishes::effort(&reasoning, "effort")?);
        budgets.extend(reasoning.count("max_tokens")?);
    }
    if let Some(variables) = fields.object("chat_template_kwargs")? {
        switches.extend(switch(&variables, "thinking")?);
        switches.extend(switch(&variables, "enable_thinking")?);
        efforts.extend(wishes::effort(&variables, "reasoning_effort")?);
    }
    if let Some(output) = fields.object("output_config")? {
        efforts.extend(wishes::effort(&output, "effort")?);
    }
    switches.extend(switch(fields, "enable_thinking")?);
    match fields.kind("think") {
        Kind::Text => efforts.extend(wishes::effort(fields, "think")?),
        _ => switches.extend(switch(fields, "think")?),
    }
    match fields.get("thinking").and_then(Json::as_bool) {
        Some(is_on) => switches.push(is_on),
        None => {
            if let Some(thinking) = fields.object("thinking")? {
                switches.push(wishes::thinking_type(&thinking)?);
                budgets.extend(thinking.count("budget_tokens")?);
            }
        }
    }
    budgets.extend(fields.count("thinking_budget")?);

    let is_off = switches.contains(&false) || efforts.contains(&Effort::None);
    let wish = ThinkingWish {
        on: match is_off {
            true => Some(false),
            false => switches.first().copied(),
        },
        effort: efforts.first().copied(),
        budget: budgets.into_iter().find(|budget| *budget > 0),
    };
    Ok(wish.resolve(model, context.default_thinking, context))
}

fn switch(fields: &Fields, name: &str) -> Result<Option<bool>, Failure> {
    match fields.get(name) {
        None => Ok(None),
        Some(_) => fields.flag(name, false).map(Some),
    }
}

fn reasoning_display(
    fields: &Fields,
    context: &RequestContext,
) -> Result<ReasoningDisplay, Failure> {
    let is_excluded = match fields.object("reasoning")? {
        Some(reasoning) => reasoning.flag("exclude", false)?,
        None => false,
    };
    if is_excluded || !fields.flag("include_reasoning", true)? {
        return Ok(ReasoningDisplay::Hidden);
    }
    match fields.optional_str("reasoning_format")? {
        None | Some("auto") => Ok(context.preferences.chat_reasoning),
        Some("deepseek") => Ok(ReasoningDisplay::ReasoningContent),
        Some("none") => Ok(ReasoningDisplay::Inline),
        Some(other) => {
            Err(fields.unknown_word("reasoning_format", other, "auto, deepseek or none"))
        }
    }
}

fn n_top_logprobs(fields: &Fields) -> Result<Option<usize>, Failure> {
    let is_wanted = fields.flag("logprobs", false)?;
    let n_top = fields.count("top_logprobs")?;
    if n_top.is_some_and(|n| n > MAX_TOP_LOGPROBS) {
        return Err(fields.mismatch("top_logprobs", "an integer from 0 to 20"));
    }
    match (is_wanted, n_top) {
        (true, n_top) => Ok(Some(n_top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => {
            let message = "top_logprobs: expected logprobs to be true beside it.";
            Err(invalid("top_logprobs", message))
        }
    }
}

/// The tools, and the names of those that take raw text.
fn read_tools(
    fields: &Fields,
    context: &RequestContext,
    warnings: &mut Vec<String>,
) -> Result<(Vec<Tool>, BTreeSet<String>), Failure> {
    let mut declared = Vec::new();
    let mut custom_tools = BTreeSet::new();
    for tool in fields.objects("tools")? {
        let kind = tool.optional_str("type")?.unwrap_or("function");
        let inner = |name: &str| {
            let inner = tool.object(name)?;
            inner.ok_or_else(|| tool.mismatch(name, "an object"))
        };
        let mut input = None;
        let (name, function) = match kind {
            "function" => {
                let function = inner("function")?;
                if !matches!(function.kind("parameters"), Kind::Nothing | Kind::Object) {
                    return Err(function.mismatch("parameters", "a JSON schema"));
                }
                // As it was received, unknown members included: what changes here changes the
                // prompt, and with it what was cached.
                (function.str("name")?.to_owned(), function.json().value()?)
            }
            "custom" => {
                let custom = inner("custom")?;
                let name = custom.str("name")?.to_owned();
                let grammar = match custom.object("format")? {
                    Some(format) => format.object("grammar")?.or(Some(format)),
                    None => None,
                };
                let description = custom.optional_str("description")?;
                let function = tools::custom_function(&name, description, grammar.as_ref())?;
                input = tools::input_grammar(grammar.as_ref())?;
                custom_tools.insert(name.clone());
                (name, function)
            }
            // The vendor's servers run these; agents list them whether or not they can.
            _ if context.strict_tools => {
                let path = tool.path_of("type");
                let message = format!("{path}: this server runs no tools itself.");
                return Err(unsupported(&path, message));
            }
            _ => {
                warnings.push(format!("{}: hosted tool left out", tool.path()));
                continue;
            }
        };
        declared.push(Tool {
            name,
            function,
            input,
            deferred: false,
            origin: Value::Null,
        });
    }
    tools::check(&declared, "tools")?;
    Ok((declared, custom_tools))
}

fn tool_choice(fields: &Fields, declared: &[Tool]) -> Result<ToolChoice, Failure> {
    let expected = "auto, none, required, a tool or allowed_tools";
    let choice = match fields.kind("tool_choice") {
        Kind::Nothing => return Ok(ToolChoice::Auto),
        Kind::Text => {
            let word = fields.str("tool_choice")?;
            word_choice(word).ok_or_else(|| fields.unknown_word("tool_choice", word, expected))?
        }
        Kind::Object => match fields.object("tool_choice")? {
            Some(choice) => object_choice(&choice, declared)?,
            None => ToolChoice::Auto,
        },
        _ => return Err(fields.mismatch("tool_choice", expected)),
    };
    if declared.is_empty() && !matches!(choice, ToolChoice::Auto | ToolChoice::None) {
        let message = "tool_choice: there are no tools, expected auto or none.";
        return Err(invalid("tool_choice", message));
    }
    Ok(choice)
}

fn word_choice(word: &str) -> Option<ToolChoice> {
    match word {
        "auto" => Some(ToolChoice::Auto),
        "none" => Some(ToolChoice::None),
        "required" | "any" => Some(ToolChoice::Required(Vec::new())),
        _ => None,
    }
}

fn object_choice(choice: &Fields, declared: &[Tool]) -> Result<ToolChoice, Failure> {
    let kind = choice.str("type")?;
    if let Some(choice) = word_choice(kind) {
        return Ok(choice);
    }
    if kind != "allowed_tools" {
        let name = declared_name(choice, declared)?;
        return Ok(ToolChoice::Required(vec![name]));
    }
    // Some clients leave out the inner object.
    let allowed = choice.object("allowed_tools")?;
    let allowed = allowed.as_ref().unwrap_or(choice);
    let mut names = Vec::new();
    for tool in allowed.objects("tools")? {
        names.push(declared_name(&tool, declared)?);
    }
    match (allowed.optional_str("mode")?, names.is_empty()) {
        (None | Some("auto"), true) => Ok(ToolChoice::None),
        (None | Some("auto"), false) => Ok(ToolChoice::Allowed(names)),
        (Some("required"), true) => Err(allowed.mismatch("tools", "at least one tool")),
        (Some("required"), false) => Ok(ToolChoice::Required(names)),
        (Some(other), _) => Err(allowed.unknown_word("mode", other, "auto or required")),
    }
}

/// The name in `{"type": "function", "function": {"name"}}`, and the same for `custom`.
fn declared_name(choice: &Fields, declared: &[Tool]) -> Result<String, Failure> {
    let kind = choice.str("type")?;
    if !matches!(kind, "function" | "custom") {
        let expected = "function, custom or allowed_tools";
        return Err(choice.unknown_word("type", kind, expected));
    }
    let inner = choice.object(kind)?;
    let inner = inner.as_ref().unwrap_or(choice);
    let name = inner.str("name")?;
    match declared.iter().any(|tool| tool.name == name) {
        true => Ok(name.to_owned()),
        false => Err(inner.unknown_word("name", name, "a tool that is declared in tools")),
    }
}

/// Turns messages of the API into messages of the renderer.
struct Reader {
    display: ReasoningDisplay,
    media: Media,
    messages: Vec<Message>,
    /// Ids of the calls read so far.
    call_ids: HashSet<String>,
    warnings: Vec<String>,
}

impl Reader {
    fn message(&mut self, message: &Fields) -> Result<(), Failure> {
        let read = match message.str("role")? {
            "system" | "developer" => Message::system(self.text(message, PART_BREAK)?),
            "user" => Message::user(self.text(message, PART_BREAK)?),
            "latest_reminder" => {
                Message::new(Role::LatestReminder, self.text(message, PART_BREAK)?)
            }
            "assistant" => self.assistant(message)?,
            "tool" => self.tool_result(message, "tool_call_id")?,
            // The older API knows one call at a time, by its name.
            "function" => self.tool_result(message, "name")?,
            other => {
                let expected = "system, developer, user, assistant, tool or latest_reminder";
                return Err(message.unknown_word("role", other, expected));
            }
        };
        self.messages.push(read);
        Ok(())
    }

    fn tool_result(&mut self, message: &Fields, id_name: &str) -> Result<Message, Failure> {
        let id = message.str(id_name)?;
        if !self.call_ids.contains(id) {
            if self.messages.iter().all(|m| m.role == Role::System) {
                let path = message.path_of(id_name);
                let text =
                    format!("{path}: no call of this id comes before; send the full conversation.");
                return Err(invalid(&path, text));
            }
            let path = message.path_of(id_name);
            self.warnings
                .push(format!("{path}: no call of this id comes before"));
        }
        Ok(Message::tool(id, self.text(message, PART_BREAK)?))
    }

    fn assistant(&mut self, message: &Fields) -> Result<Message, Failure> {
        // The parts of one answer are pieces of one text.
        let mut content = self.text(message, "")?;
        content.push_str(message.optional_str("refusal")?.unwrap_or_default());
        let mut reasoning = echoed_reasoning(message)?;
        if self.display == ReasoningDisplay::Inline
            && let Some((thought, answer)) = content
                .strip_prefix(THINK_OPEN)
                .and_then(|rest| rest.split_once(THINK_CLOSE))
        {
            reasoning.get_or_insert_with(|| thought.to_owned());
            content = answer.to_owned();
        }
        let mut turn = Message {
            reasoning: reasoning.filter(|text| !text.trim().is_empty()),
            ..Message::assistant(content)
        };
        for call in message.objects("tool_calls")? {
            turn.tool_calls.push(tool_call(&call)?);
        }
        if let Some(call) = message.object("function_call")? {
            let name = call.str("name")?;
            turn.tool_calls.push(ToolCall {
                id: name.to_owned(),
                name: name.to_owned(),
                arguments: arguments(&call)?,
            });
        }
        let ids = turn.tool_calls.iter().map(|call| call.id.clone());
        self.call_ids.extend(ids);
        Ok(turn)
    }

    /// The text of a content that is a string or a list of parts. Images and the like are named,
    /// unless the server is to refuse them: refusing ends the session, because the client sends
    /// them again with every turn.
    fn text(&mut self, message: &Fields, part_break: &str) -> Result<String, Failure> {
        match message.kind("content") {
            Kind::Nothing => return Ok(String::new()),
            Kind::Text => return message.text("content"),
            Kind::Array => {}
            _ => return Err(message.mismatch("content", "a string or an array of parts")),
        }
        let mut texts = Vec::new();
        for part in message.objects("content")? {
            let noun = match part.str("type")? {
                "text" | "input_text" | "output_text" => {
                    texts.push(part.text("text")?);
                    continue;
                }
                "refusal" => {
                    texts.push(part.str("refusal")?.to_owned());
                    continue;
                }
                "image_url" | "input_image" => "image",
                "file" | "input_file" => "file",
                "input_audio" => "audio",
                other => other,
            };
            if self.media == Media::Refuse && message.str("role")? == "user" {
                return Err(tools::refused(part.path(), noun));
            }
            self.warnings
                .push(format!("{}: {noun} left out", part.path()));
            texts.push(tools::omitted(noun));
        }
        Ok(texts.join(part_break))
    }
}

/// The first of `reasoning_content`, `reasoning` and `reasoning_details` that says something.
fn echoed_reasoning(message: &Fields) -> Result<Option<String>, Failure> {
    for name in ["reasoning_content", "reasoning"] {
        let text = message.optional_str(name)?;
        if let Some(text) = text.filter(|text| !text.trim().is_empty()) {
            return Ok(Some(text.to_owned()));
        }
    }
    let mut joined = String::new();
    for detail in message.objects("reasoning_details")? {
        let text = match detail.optional_str("text")? {
            None => detail.optional_str("summary")?,
            text => text,
        };
        joined.push_str(text.unwrap_or_default());
    }
    Ok((!joined.is_empty()).then_some(joined))
}

fn tool_call(call: &Fields) -> Result<ToolCall, Failure> {
    let id = call.optional_str("id")?.unwrap_or_default().to_owned();
    if let Some(custom) = call.object("custom")? {
        return Ok(ToolCall {
            id,
            name: custom.str("name")?.to_owned(),
            arguments: json::to_string(&json!({INPUT: custom.str("input")?})),
        });
    }
    match call.object("function")? {
        Some(function) => Ok(ToolCall {
            id,
            name: function.str("name")?.to_owned(),
            arguments: arguments(&function)?,
        }),
        None => Err(call.mismatch("function", "an object")),
    }
}

/// Arguments as JSON text. Some clients send the object itself.
fn arguments(function: &Fields) -> Result<String, Failure> {
    match (function.kind("arguments"), function.get("arguments")) {
        (Kind::Text, _) => function.text("arguments"),
        (Kind::Object, Some(object)) => Ok(json::to_string(&object.value()?)),
        (_, None) => Ok("{}".to_owned()),
        _ => Err(function.mismatch("arguments", "a string of JSON text")),
    }
}

/// Reads what the last message asks for: to be continued, or a task.
fn finish_conversation(
    fields: &Fields,
    received: &[Fields],
    messages: &mut [Message],
) -> Result<(), Failure> {
    let n_before_last = received.len().saturating_sub(1);
    for message in &received[..n_before_last] {
        if message.flag("prefix", false)? {
            let path = message.path_of("prefix");
            let text = format!("{path}: only the last message can be continued.");
            return Err(invalid(&path, text));
        }
    }
    let (Some(last), Some(turn)) = (received.last(), messages.last_mut()) else {
        return Err(fields.mismatch("messages", "at least one message"));
    };
    if let Some(word) = last.optional_str("task")? {
        let task = Task::from_name(word);
        let role = match task {
            Some(Task::Title) => Role::Assistant,
            _ => Role::User,
        };
        if task.is_none() || turn.role != role {
            let expected = "title behind an assistant message, or action, query, authority, \
                            domain or read_url behind a user message";
            return Err(last.unknown_word("task", word, expected));
        }
        turn.task = task;
        return Ok(());
    }
    let wants_more = last.flag("prefix", false)?
        || fields.flag("continue_final_message", false)?
        || !fields.flag("add_generation_prompt", true)?;
    let path = last.path();
    match (turn.role == Role::Assistant, wants_more) {
        (false, false) => Ok(()),
        // Also where nobody says so: there is nothing else to answer.
        (true, _) if turn.tool_calls.is_empty() => {
            turn.open_ended = true;
            Ok(())
        }
        (true, _) => Err(invalid(
            path,
            format!("{path}: the last message calls tools; send their results behind it."),
        )),
        (false, true) => Err(invalid(
            path,
            format!("{path}: only an assistant message can be continued."),
        )),
    }
}
