//! Requests: from system, messages and blocks to a [`Generation`].

use std::borrow::Cow;
use std::sync::Arc;

use ds4_text::{Message, Mode, Role, ToolCall, json};
use serde_json::{Map, Value, json};

use super::reply::{ReplyShape, ThinkingDisplay, call_id};
use super::thread::{self, NoThreads, Thread, ThreadStore};
use crate::api::choices;
use crate::api::fields::{Fields, PathStyle};
use crate::api::json::{Json, Kind};
use crate::api::normalise::normalise;
use crate::api::tools;
use crate::api::wishes::{self, ThinkingWish};
use crate::api::{Document, Media, Preferences, RequestContext, invalid, unsupported};
use crate::generation::{
    Endpoint, Failure, Generation, OutputSchema, PromptSource, Tool, ToolChoice,
};

/// Between the text blocks of a system text, of a user message and of a tool result.
const BLOCK_BREAK: &str = "\n\n";
/// Lines that begin like this are for the vendor's accounting. They change from session to
/// session and would be the first thing in every prompt.
const VOLATILE_LINE: &str = "x-anthropic-";
/// In front of a result that the client marks as an error.
const ERROR_PREFIX: &str = "Error: ";

/// A request, read.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// What to generate.
    pub generation: Generation,
    /// How to write the reply.
    pub reply: ReplyShape,
    /// Handles of earlier turns that the conversation carries (signatures), oldest first. Not
    /// all of them need be ours.
    pub turn_handles: Vec<String>,
    /// The conversation to keep beside the reply, if the client will go on by its id.
    pub thread: Option<Thread>,
    /// What was left out of the request, for the log.
    pub warnings: Vec<String>,
}

/// Reads a request to `/v1/messages`, or to `/v1/messages/count_tokens`, which is the same
/// without `max_tokens`.
///
/// # Errors
/// A member of another shape, or a wish that is not granted; members we do not know are ignored.
pub fn parse<'a>(
    body: impl Into<Document<'a>>,
    context: &RequestContext,
) -> Result<Parsed, Failure> {
    parse_with_threads(body, context, &NoThreads)
}

/// As [`parse`], where conversations are kept that a client may go on with.
///
/// # Errors
/// As [`parse`], and a conversation that is not kept.
pub fn parse_with_threads<'a>(
    body: impl Into<Document<'a>>,
    context: &RequestContext,
    threads: &dyn ThreadStore,
) -> Result<Parsed, Failure> {
    let body = body.into();
    let fields = Fields::of_body(body.json(), PathStyle::Dots)?;
    let model = fields.optional_str("model")?.unwrap_or(&context.model_id);
    wishes::check_model(model, context)?;
    let mut thread = thread::read(&fields, threads)?;
    // A thread's system text and tools are those that it began with.
    let (head, old) = match &thread {
        Some(Thread { head, messages, .. }) => (Arc::clone(head), messages.clone()),
        None => (Arc::from("{}"), Vec::new()),
    };
    let head = match thread {
        Some(_) => Fields::of_body(body.json().beside(&head), PathStyle::Dots)?,
        None => fields.clone(),
    };
    let mut warnings = Vec::new();
    let tools = read_tools(&head, context, &mut warnings)?;
    let (tool_choice, parallel_tool_calls) = tool_choice(&fields, &tools)?;
    let schema = output_schema(&fields)?;

    let mut reader = Reader {
        tools: &tools,
        preferences: &context.preferences,
        refuses_media: false,
        messages: Vec::new(),
        turn_handles: Vec::new(),
        warnings,
    };
    reader.system(&head)?;
    for message in &old {
        let message = body.json().beside(message);
        reader.message(&Fields::of_body(message, PathStyle::Dots)?)?;
    }
    let received = fields.objects("messages")?;
    if received.is_empty() && old.is_empty() {
        return Err(fields.mismatch("messages", "at least one message"));
    }
    for message in &received {
        reader.message(message)?;
    }
    if let Some(thread) = &mut thread {
        for message in &received {
            thread.messages.push(message.json().raw().into());
        }
        thread.n_new = received.len();
    }
    let Reader {
        mut messages,
        turn_handles,
        warnings,
        ..
    } = reader;

    let (mut thinking, display) = thinking(&fields, model, context)?;
    if let Some(last) = messages.last_mut()
        && last.role == Role::Assistant
    {
        if !last.tool_calls.is_empty() {
            let place = received.last().map(Fields::path).unwrap_or_default();
            let message = format!(
                "{place}: the last message calls tools; send their results in a user message."
            );
            return Err(invalid(place, message));
        }
        // The client has begun the answer itself, so there is no room for thinking before it.
        last.open_ended = true;
        thinking.mode = Mode::Chat;
        thinking.effort = ds4_text::Effort::None;
        thinking.budget = None;
    }

    let shown = tools
        .iter()
        .filter(|tool| !tool.deferred)
        .map(|tool| tool.function.clone())
        .collect();
    let shown_schema = schema.as_ref().map(|schema| schema.schema.clone());
    let messages = normalise(messages, shown, shown_schema, "messages")?;
    let generation = Generation {
        endpoint: Endpoint::Messages,
        model: model.to_owned(),
        prompt: PromptSource::Messages(messages),
        more_prompts: Vec::new(),
        n_choices: 1,
        thinking,
        tools,
        tool_choice,
        parallel_tool_calls,
        schema,
        sampling: wishes::sampling(&fields)?,
        max_tokens: Some(
            fields
                .count("max_tokens")?
                .unwrap_or(context.default_max_tokens),
        ),
        stop: wishes::stop_strings(&fields, "stop_sequences")?,
        n_top_logprobs: None,
        ignore_eos: false,
        stream: fields.flag("stream", false)?,
        affinity: affinity(&fields, context)?,
        use_cache: fields.flag("cache_prompt", true)?,
        keeps_reasoning: false,
    };
    let reply = ReplyShape {
        id: format!("msg_{}", (context.new_id)()),
        model: model.to_owned(),
        request_id: context.request_id.clone(),
        thinking: display,
        warnings: Vec::new(),
        signature: (context.new_id)(),
    };
    Ok(Parsed {
        generation,
        reply,
        turn_handles,
        thread,
        warnings,
    })
}

fn thinking(
    fields: &Fields,
    model: &str,
    context: &RequestContext,
) -> Result<(crate::generation::Thinking, ThinkingDisplay), Failure> {
    let mut wish = ThinkingWish::default();
    let mut display = ThinkingDisplay::Shown;
    if let Some(thinking) = fields.object("thinking")? {
        wish.on = Some(wishes::thinking_type(&thinking)?);
        wish.budget = thinking.count("budget_tokens")?.filter(|n| *n > 0);
        if thinking.optional_str("display")? == Some("omitted") {
            display = ThinkingDisplay::Omitted;
        }
    }
    if let Some(output) = fields.object("output_config")? {
        wish.effort = wishes::effort(&output, "effort")?;
    }
    let preferences = &context.preferences;
    if preferences.hides_default_thinking && !wish.says_something() {
        display = ThinkingDisplay::Hidden;
    }
    let default = preferences
        .messages_thinking
        .unwrap_or(context.default_thinking);
    Ok((wish.resolve(model, default, context), display))
}

/// The schema of `output_config.format`, or of `output_format` as it was called first.
fn output_schema(fields: &Fields) -> Result<Option<OutputSchema>, Failure> {
    let format = match fields.object("output_config")? {
        Some(output) => output.object("format")?,
        None => None,
    };
    let Some(format) = format.or(fields.object("output_format")?) else {
        return Ok(None);
    };
    match format.str("type")? {
        "json_schema" => match choices::schema(&format, "schema")? {
            Some(schema) => Ok(Some(schema)),
            None => Err(format.mismatch("schema", "a JSON schema")),
        },
        "text" => Ok(None),
        other => Err(format.unknown_word("type", other, "json_schema")),
    }
}

/// What says that requests belong together, as far as the client tells.
fn affinity(fields: &Fields, context: &RequestContext) -> Result<Option<String>, Failure> {
    if let Some(session) = context.headers.get("x-claude-code-session-id") {
        return Ok(Some(session.clone()));
    }
    let metadata = fields.object("metadata")?;
    let user = metadata.as_ref().and_then(|m| m.get("user_id"));
    Ok(user.and_then(Json::as_text).map(Cow::into_owned))
}

fn read_tools(
    fields: &Fields,
    context: &RequestContext,
    warnings: &mut Vec<String>,
) -> Result<Vec<Tool>, Failure> {
    let mut declared = Vec::new();
    for tool in fields.objects("tools")? {
        let kind = tool.optional_str("type")?.unwrap_or("custom");
        let function = match tool.get("input_schema") {
            Some(schema) if schema.kind() == Kind::Object => function(&tool, schema.value()?)?,
            Some(_) => return Err(tool.mismatch("input_schema", "a JSON schema")),
            None if kind == "custom" => {
                return Err(tool.mismatch("input_schema", "a JSON schema"));
            }
            None => match client_tool(kind) {
                Some(function) => function,
                // The vendor's servers run these; agents list them whether or not they can.
                None if context.strict_tools => {
                    let path = tool.path_of("type");
                    return Err(unsupported(
                        &path,
                        format!("{path}: this server runs no tools itself."),
                    ));
                }
                None => {
                    warnings.push(format!("{}: hosted tool left out", tool.path()));
                    continue;
                }
            },
        };
        declared.push(Tool {
            name: function["name"].as_str().unwrap_or_default().to_owned(),
            function,
            input: None,
            deferred: tool.flag("defer_loading", false)?,
            origin: Value::Null,
        });
    }
    tools::check(&declared, "tools")?;
    Ok(declared)
}

fn function(tool: &Fields, schema: Value) -> Result<Value, Failure> {
    let mut function = Map::new();
    function.insert("name".to_owned(), tool.str("name")?.into());
    if let Some(description) = tool.optional_str("description")? {
        function.insert("description".to_owned(), description.into());
    }
    function.insert("parameters".to_owned(), schema);
    if let Some(strict) = tool.value("strict")? {
        function.insert("strict".to_owned(), strict);
    }
    Ok(function.into())
}

/// The tools that the vendor names and the client runs, as functions. Their calls are ordinary
/// `tool_use` blocks.
fn client_tool(kind: &str) -> Option<Value> {
    let is = |family: &str| {
        kind.strip_prefix(family)
            .is_some_and(|date| date.len() == 8 && date.bytes().all(|b| b.is_ascii_digit()))
    };
    if is("bash_") {
        return Some(json!({
            "name": "bash",
            "description": "Runs a command in a persistent shell session.",
            "parameters": {
                "type": "object",
                "properties": {
                    "command": {"type": "string", "description": "The command to run."},
                    "restart": {
                        "type": "boolean",
                        "description": "Start the shell anew instead of running a command.",
                    },
                },
            },
        }));
    }
    if is("text_editor_") {
        // The name changed with the third release, which took undo_edit away.
        let is_old = kind < "text_editor_20250429";
        let mut commands = vec!["view", "create", "str_replace", "insert"];
        commands.extend(is_old.then_some("undo_edit"));
        return Some(json!({
            "name": if is_old { "str_replace_editor" } else { "str_replace_based_edit_tool" },
            "description": "Views, creates and edits text files.",
            "parameters": {
                "type": "object",
                "properties": {
                    "command": {"type": "string", "enum": commands},
                    "path": {"type": "string"},
                    "view_range": {
                        "type": "array",
                        "items": {"type": "integer"},
                        "description": "For view: first and last line, from 1; -1 is the end.",
                    },
                    "file_text": {"type": "string", "description": "For create."},
                    "old_str": {"type": "string", "description": "For str_replace: what to replace; stands in the file exactly once."},
                    "new_str": {"type": "string", "description": "For str_replace."},
                    "insert_line": {
                        "type": "integer",
                        "description": "For insert: the line after which to insert; 0 is the beginning.",
                    },
                    "insert_text": {"type": "string", "description": "For insert."},
                },
                "required": ["command", "path"],
            },
        }));
    }
    if is("memory_") {
        return Some(json!({
            "name": "memory",
            "description": "Reads and writes files under /memories that outlive the conversation.",
            "parameters": {
                "type": "object",
                "properties": {
                    "command": {
                        "type": "string",
                        "enum": ["view", "create", "str_replace", "insert", "delete", "rename"],
                    },
                    "path": {"type": "string"},
                    "view_range": {"type": "array", "items": {"type": "integer"}},
                    "file_text": {"type": "string"},
                    "old_str": {"type": "string"},
                    "new_str": {"type": "string"},
                    "insert_line": {"type": "integer"},
                    "insert_text": {"type": "string"},
                    "old_path": {"type": "string"},
                    "new_path": {"type": "string"},
                },
                "required": ["command"],
            },
        }));
    }
    None
}

fn tool_choice(fields: &Fields, declared: &[Tool]) -> Result<(ToolChoice, bool), Failure> {
    let Some(choice) = fields.object("tool_choice")? else {
        return Ok((ToolChoice::Auto, true));
    };
    let parallel = !choice.flag("disable_parallel_tool_use", false)?;
    let required = match choice.str("type")? {
        "auto" => return Ok((ToolChoice::Auto, parallel)),
        "none" => return Ok((ToolChoice::None, parallel)),
        "any" => Vec::new(),
        "tool" => {
            let name = choice.str("name")?;
            if !declared.iter().any(|tool| tool.name == name) {
                return Err(choice.unknown_word("name", name, "a tool that is declared in tools"));
            }
            vec![name.to_owned()]
        }
        other => return Err(choice.unknown_word("type", other, "auto, any, tool or none")),
    };
    if declared.is_empty() {
        return Err(choice.mismatch("type", "auto or none, as there are no tools"));
    }
    Ok((ToolChoice::Required(required), parallel))
}

/// Turns blocks into messages.
struct Reader<'a> {
    tools: &'a [Tool],
    preferences: &'a Preferences,
    /// Whether images and the like are refused in what is being read.
    refuses_media: bool,
    messages: Vec<Message>,
    turn_handles: Vec<String>,
    warnings: Vec<String>,
}

impl Reader<'_> {
    fn system(&mut self, fields: &Fields) -> Result<(), Failure> {
        let text = self.system_text(fields, "system")?;
        if !text.is_empty() {
            self.messages.push(Message::system(text));
        }
        Ok(())
    }

    fn system_text(&mut self, owner: &Fields, name: &str) -> Result<String, Failure> {
        let texts = match owner.kind(name) {
            Kind::Nothing => Vec::new(),
            Kind::Text => vec![owner.text(name)?],
            Kind::Array => {
                let mut texts = Vec::new();
                for block in owner.objects(name)? {
                    texts.push(self.block_text(&block)?);
                }
                texts
            }
            _ => return Err(owner.mismatch(name, "a string or an array of text blocks")),
        };
        let mut kept = Vec::new();
        for text in &texts {
            let (text, is_shorter) = match self.preferences.keeps_client_headers {
                true => (text.as_str(), false),
                false => without_volatile_lines(text),
            };
            if is_shorter {
                let place = owner.path_of(name);
                self.warnings
                    .push(format!("{place}: {VOLATILE_LINE} line left out"));
            }
            if !text.is_empty() {
                kept.push(text);
            }
        }
        Ok(kept.join(BLOCK_BREAK))
    }

    fn message(&mut self, message: &Fields) -> Result<(), Failure> {
        match message.str("role")? {
            "user" => self.user(message),
            "assistant" => self.assistant(message),
            "system" | "developer" => {
                let text = self.system_text(message, "content")?;
                if !text.is_empty() {
                    self.messages.push(Message::system(text));
                }
                Ok(())
            }
            other => Err(message.unknown_word("role", other, "user, assistant or system")),
        }
    }

    /// The blocks of a content that is a list, or of one that is a string and so one text block.
    fn user(&mut self, message: &Fields) -> Result<(), Failure> {
        if message.kind("content") == Kind::Text {
            self.messages.push(Message::user(message.text("content")?));
            return Ok(());
        }
        let mut texts: Vec<String> = Vec::new();
        let n_before = self.messages.len();
        for block in content_blocks(message)? {
            if block.str("type")? != "tool_result" {
                self.refuses_media = self.preferences.media == Media::Refuse;
                let text = self.block_text(&block)?;
                self.refuses_media = false;
                if !text.is_empty() {
                    texts.push(text);
                }
                continue;
            }
            self.user_text(&mut texts);
            if self.messages.iter().all(|m| m.role == Role::System) {
                let place = block.path_of("tool_use_id");
                let message = format!(
                    "{place}: unknown tool_result tool_use_id; send the full conversation again."
                );
                return Err(invalid(&place, message));
            }
            let id = call_id(block.str("tool_use_id")?);
            let content = self.result_text(&block)?;
            self.messages.push(Message::tool(id, content));
        }
        self.user_text(&mut texts);
        if self.messages.len() == n_before {
            self.messages.push(Message::user(""));
        }
        Ok(())
    }

    fn user_text(&mut self, texts: &mut Vec<String>) {
        if !texts.is_empty() {
            self.messages.push(Message::user(texts.join(BLOCK_BREAK)));
            texts.clear();
        }
    }

    fn result_text(&mut self, result: &Fields) -> Result<String, Failure> {
        let text = match result.kind("content") {
            Kind::Nothing => String::new(),
            Kind::Text => result.text("content")?,
            _ => {
                let mut texts = Vec::new();
                let mut found: Vec<String> = Vec::new();
                for block in content_blocks(result)? {
                    match block.str("type")? {
                        "tool_reference" => found.push(block.str("tool_name")?.to_owned()),
                        _ => texts.push(self.block_text(&block)?),
                    }
                }
                texts.retain(|text| !text.is_empty());
                if !found.is_empty() {
                    texts.push(tools::found_text(&found, self.tools));
                }
                texts.join(BLOCK_BREAK)
            }
        };
        let says_error = text
            .get(..5)
            .is_some_and(|head| head.eq_ignore_ascii_case("error"));
        Ok(match result.flag("is_error", false)? && !says_error {
            true => format!("{ERROR_PREFIX}{text}"),
            false => text,
        })
    }

    fn assistant(&mut self, message: &Fields) -> Result<(), Failure> {
        let mut turn = Message::assistant("");
        if message.kind("content") == Kind::Text {
            turn.content = message.text("content")?;
            self.messages.push(turn);
            return Ok(());
        }
        let mut reasoning: Vec<String> = Vec::new();
        for block in content_blocks(message)? {
            match block.str("type")? {
                "thinking" => {
                    reasoning.extend(block.optional_str("thinking")?.map(str::to_owned));
                    self.turn_handle(&block, "signature")?;
                }
                "redacted_thinking" => self.turn_handle(&block, "data")?,
                "tool_use" => turn.tool_calls.push(ToolCall {
                    id: call_id(block.str("id")?),
                    name: block.str("name")?.to_owned(),
                    arguments: match block.value("input")? {
                        None => "{}".to_owned(),
                        Some(input) => json::to_string(&input),
                    },
                }),
                _ => turn.content.push_str(&self.block_text(&block)?),
            }
        }
        reasoning.retain(|text| !text.trim().is_empty());
        if !reasoning.is_empty() {
            turn.reasoning = Some(reasoning.join("\n"));
        }
        if !turn.content.is_empty() || turn.reasoning.is_some() || !turn.tool_calls.is_empty() {
            self.messages.push(turn);
        }
        Ok(())
    }

    fn turn_handle(&mut self, block: &Fields, name: &str) -> Result<(), Failure> {
        let handle = block.optional_str(name)?.filter(|text| !text.is_empty());
        self.turn_handles.extend(handle.map(str::to_owned));
        Ok(())
    }

    /// What a block says in words. A block that says nothing in words is named instead, because
    /// refusing it would end the session: the client sends it again with every turn.
    fn block_text(&mut self, block: &Fields) -> Result<String, Failure> {
        let kind = block.str("type")?;
        Ok(match kind {
            "text" => block.text("text")?,
            "document" => self.document(block)?,
            "search_result" => {
                let mut texts = Vec::new();
                for name in ["title", "source"] {
                    texts.extend(block.optional_str(name)?.map(str::to_owned));
                }
                for part in block.objects("content")? {
                    texts.push(self.block_text(&part)?);
                }
                texts.join("\n")
            }
            "server_tool_use" => {
                let name = block.optional_str("name")?.unwrap_or(kind);
                let input = block.value("input")?.as_ref().map(json::to_string);
                let input = input.unwrap_or_default();
                format!("[{name} {input}]")
            }
            "image" => self.omitted(block, "image")?,
            other => match block.kind("text") {
                Kind::Text => block.text("text")?,
                _ => self.omitted(block, other)?,
            },
        })
    }

    fn document(&mut self, block: &Fields) -> Result<String, Failure> {
        let mut texts = Vec::new();
        for name in ["title", "context"] {
            texts.extend(block.optional_str(name)?.map(str::to_owned));
        }
        let source = block
            .object("source")?
            .ok_or_else(|| block.mismatch("source", "an object"))?;
        match source.str("type")? {
            "text" => texts.push(source.text("data")?),
            "content" => match source.kind("content") {
                Kind::Text => texts.push(source.text("content")?),
                _ => {
                    for part in content_blocks(&source)? {
                        texts.push(self.block_text(&part)?);
                    }
                }
            },
            _ => texts.push(self.omitted(block, "document")?),
        }
        Ok(texts.join("\n"))
    }

    fn omitted(&mut self, block: &Fields, noun: &str) -> Result<String, Failure> {
        if self.refuses_media {
            return Err(tools::refused(block.path(), noun));
        }
        self.warnings
            .push(format!("{}: {noun} left out", block.path()));
        Ok(tools::omitted(noun))
    }
}

fn content_blocks<'a>(message: &Fields<'a>) -> Result<Vec<Fields<'a>>, Failure> {
    match message.kind("content") {
        Kind::Nothing => Ok(Vec::new()),
        Kind::Array => message.objects("content"),
        _ => Err(message.mismatch("content", "a string or an array of blocks")),
    }
}

/// `text` without the volatile lines it begins with and the empty lines behind them, and whether
/// there were any.
fn without_volatile_lines(text: &str) -> (&str, bool) {
    let mut rest = text;
    while rest.starts_with(VOLATILE_LINE) {
        let end = rest.find('\n').unwrap_or(rest.len());
        rest = rest[end..].trim_start_matches(['\n', '\r']);
    }
    (rest, rest.len() < text.len())
}
