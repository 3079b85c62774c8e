//! Requests: from instructions and items to a [`Generation`].

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use ds4_text::{Message, Role};
use serde_json::{Map, Value, json};

use super::input::{Conversation, item_type};
use super::origin::{self, Origin, Origins, flat_name};
use super::reply::{ReasoningDisplay, ReplyShape};
use super::store::{NoStore, ResponseStore};
use crate::api::choices;
use crate::api::fields::{Fields, PathStyle};
use crate::api::json::{Json, Kind};
use crate::api::normalise::normalise;
use crate::api::tools;
use crate::api::wishes::{self, ThinkingWish};
use crate::api::{Document, RequestContext, invalid, unsupported};
use crate::generation::{
    Endpoint, Failure, FailureKind, Generation, OutputSchema, PromptSource, Tool, ToolChoice,
};

/// Most likely tokens that may be asked for.
const MAX_TOP_LOGPROBS: usize = 20;

/// A request, read.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// What to generate.
    pub generation: Generation,
    /// How to write the reply.
    pub reply: ReplyShape,
    /// Handles of earlier turns that the conversation carries (`encrypted_content`), oldest
    /// first. Not all of them need be ours.
    pub turn_handles: Vec<String>,
    /// What was left out of the request, for the log.
    pub warnings: Vec<String>,
    /// All input items as JSON text, those of earlier responses included: what a store keeps
    /// beside the response.
    pub input: Vec<Arc<str>>,
    /// Whether the client wants the response kept.
    pub store: bool,
    /// Whether to drop the oldest turns of a prompt that is too long, rather than refuse it.
    pub truncate: bool,
}

/// Reads a request to `/v1/responses` or `/v1/responses/input_tokens` that refers to nothing
/// stored.
///
/// # Errors
/// As [`parse_with_store`].
pub fn parse<'a>(
    body: impl Into<Document<'a>>,
    context: &RequestContext,
) -> Result<Parsed, Failure> {
    parse_with_store(body, context, &NoStore)
}

/// Reads a request that may continue a stored response: by `previous_response_id`, by an item
/// reference, or by nothing but the results of its calls.
///
/// # Errors
/// A member of another shape, a wish that is not granted, a response or call that is not stored;
/// members we do not know are ignored.
pub fn parse_with_store<'a>(
    body: impl Into<Document<'a>>,
    context: &RequestContext,
    store: &dyn ResponseStore,
) -> Result<Parsed, Failure> {
    let body = body.into();
    let fields = Fields::of_body(body.json(), PathStyle::Brackets)?;
    refuse(&fields)?;
    let model = fields.optional_str("model")?.unwrap_or(&context.model_id);
    wishes::check_model(model, context)?;
    let input = expand(&fields, store)?;
    let items = input.iter().enumerate();
    let items: Vec<Fields> = items
        .map(|(i, item)| fields.item("input", i, fields.json().beside(item)))
        .collect::<Result<_, _>>()?;

    let mut declared = Vec::new();
    let mut conversation = Conversation {
        media: context.preferences.media,
        ..Conversation::default()
    };
    for tool in fields.objects("tools")? {
        declared.extend(read_tool(&tool, context, &mut conversation.warnings)?);
    }
    for item in &items {
        if item_type(item)? == "additional_tools" {
            let later = item_tools(item)?;
            declared.extend(later.into_iter().map(|(tool, origin)| {
                let deferred = true;
                (Tool { deferred, ..tool }, origin)
            }));
        }
    }
    let (declared, origins): (Vec<Tool>, Vec<Origin>) = declared.into_iter().unzip();
    tools::check(&declared, "tools")?;
    let names = declared.iter().map(|tool| tool.name.clone());
    let origins: Origins = names.zip(origins).collect();
    let (tool_choice, choice_echo) = tool_choice(&fields, &declared, &origins)?;
    let parallel_tool_calls = fields.flag("parallel_tool_calls", true)?;

    if let Some(text) = fields.optional_str("instructions")? {
        conversation.messages.push(Message::system(text));
    }
    for item in &items {
        conversation.item(item, &declared)?;
    }
    let Conversation {
        mut messages,
        turn_handles,
        warnings,
        orphan,
        ..
    } = conversation;
    // A reasoning item whose text only its handle can restore.
    messages.retain(|message| {
        let is_empty = message.content.is_empty()
            && message.reasoning.is_none()
            && message.tool_calls.is_empty();
        message.role != Role::Assistant || !is_empty
    });
    let begins_with_result = messages
        .iter()
        .find(|message| message.role != Role::System)
        .is_some_and(|message| message.role == Role::Tool);
    if let (Some(place), true) = (orphan, begins_with_result) {
        return Err(Failure {
            kind: FailureKind::Invalid,
            message: format!(
                "{place}: unknown tool output call_id; send the full conversation again."
            ),
            param: Some(place),
        });
    }
    if let Some(last) = messages.last_mut()
        && last.role == Role::Assistant
    {
        if !last.tool_calls.is_empty() {
            let message = "input: the last item is a call; send its output behind it.";
            return Err(invalid("input", message));
        }
        // An answer that was begun is gone on with.
        last.open_ended = true;
    }

    let (schema, shown_schema) = output_schema(&fields)?;
    let shown = declared
        .iter()
        .filter(|tool| !tool.deferred)
        .map(|tool| tool.function.clone())
        .collect();
    let messages = normalise(messages, shown, shown_schema, "input")?;
    let sampling = wishes::sampling(&fields)?;
    let include = include(&fields)?;
    let reasoning = reasoning(&fields, context)?;
    let max_output_tokens = fields.count("max_output_tokens")?;
    let top_logprobs = fields.count("top_logprobs")?.unwrap_or(0);
    if top_logprobs > MAX_TOP_LOGPROBS {
        return Err(fields.mismatch("top_logprobs", "an integer from 0 to 20"));
    }
    let truncate = match fields.optional_str("truncation")? {
        None | Some("disabled") => false,
        Some("auto") => true,
        Some(other) => return Err(fields.unknown_word("truncation", other, "auto or disabled")),
    };
    let store = fields.flag("store", true)?;
    let wants_stream = fields.flag("stream", false)?;

    let echo = echo(
        &fields,
        &[
            ("model", model.into()),
            ("parallel_tool_calls", parallel_tool_calls.into()),
            ("temperature", number(sampling.temperature)),
            ("top_p", number(sampling.top_p)),
            ("store", store.into()),
            ("tool_choice", choice_echo),
            ("top_logprobs", top_logprobs.into()),
        ],
    )?;
    let digits = format!("{}{}", (context.new_id)(), (context.new_id)());
    let reply = ReplyShape {
        id: format!("resp_{}", digits.get(..48).unwrap_or(&digits)),
        created_at: context.now_unix,
        echo,
        reasoning: reasoning.display,
        encrypted_content: include.encrypted_content.then(context.new_id),
        logprobs: include.logprobs,
        origins,
        warnings: Vec::new(),
    };
    let generation = Generation {
        endpoint: Endpoint::Responses,
        model: model.to_owned(),
        prompt: PromptSource::Messages(messages),
        more_prompts: Vec::new(),
        n_choices: 1,
        thinking: reasoning
            .wish
            .resolve(model, context.default_thinking, context),
        tools: declared,
        tool_choice,
        parallel_tool_calls,
        schema,
        sampling,
        max_tokens: Some(max_output_tokens.unwrap_or(context.default_max_tokens)),
        stop: Vec::new(),
        n_top_logprobs: include.logprobs.then_some(top_logprobs),
        ignore_eos: false,
        stream: wants_stream,
        affinity: affinity(&fields, context)?,
        use_cache: fields.flag("cache_prompt", true)?,
        keeps_reasoning: false,
    };
    Ok(Parsed {
        generation,
        reply,
        turn_handles,
        warnings,
        input,
        store,
        truncate,
    })
}

/// What is not offered and would change the answer.
fn refuse(fields: &Fields) -> Result<(), Failure> {
    if fields.flag("background", false)? {
        return Err(fields.unsupported("background", "responses are not made in the background"));
    }
    for (name, why) in [
        (
            "conversation",
            "conversation objects are not kept; use previous_response_id",
        ),
        ("prompt", "stored prompts are not kept; send the text"),
    ] {
        if fields.get(name).is_some() {
            return Err(fields.unsupported(name, why));
        }
    }
    Ok(())
}

/// All input items: those of the response that is continued, its output, and those of the
/// request.
fn expand(fields: &Fields, store: &dyn ResponseStore) -> Result<Vec<Arc<str>>, Failure> {
    let body = fields.json();
    let mut new: Vec<Arc<str>> = Vec::new();
    match fields.get("input") {
        None => {}
        Some(text) if text.kind() == Kind::Text => {
            let raw = text.raw();
            new.push(format!(r#"{{"type":"message","role":"user","content":{raw}}}"#).into());
        }
        Some(items) if items.kind() == Kind::Array => items.each(|item| {
            body.take(size_of::<Arc<str>>() + item.raw().len())?;
            new.push(item.raw().into());
            Ok(())
        })?,
        Some(_) => return Err(fields.mismatch("input", "a string or an array of items")),
    }
    let first = new.first().map(|item| ids_of(body.beside(item)));
    let previous = match (fields.optional_str("previous_response_id")?, first) {
        (Some(id), _) => match store.response(id) {
            Some(previous) => Some(previous),
            None => {
                let message = "previous_response_id: no response of this id is stored here; send \
                               the full input again.";
                return Err(invalid("previous_response_id", message));
            }
        },
        // The results of a stored response's calls are enough to go on with it.
        (None, Some(first)) => {
            let call_id = first?.output_of;
            call_id.and_then(|call_id| store.response_with_call(&call_id))
        }
        (None, None) => None,
    };
    let mut items = previous.map_or_else(Vec::new, |previous| previous.conversation());
    let mut ids = HashSet::new();
    for item in &items {
        ids.extend(ids_of(body.beside(item))?.own);
    }
    for (i, item) in new.into_iter().enumerate() {
        let named = ids_of(body.beside(&item))?;
        let (Some(id), true) = (&named.own, named.is_reference) else {
            ids.extend(named.own);
            items.push(item);
            continue;
        };
        // An item that is there by other means is not repeated.
        if ids.contains(id) {
            continue;
        }
        let owner = store.response_with_item(id);
        let found = owner.as_ref().and_then(|owner| {
            let output = owner.output().iter();
            output.into_iter().find(|item| item["id"] == **id)
        });
        match found {
            Some(found) => items.push(found.to_string().into()),
            None => {
                let place = format!("input[{i}].id");
                let message = format!("{place}: no item of this id is stored here; send it whole.");
                return Err(invalid(&place, message));
            }
        }
        ids.extend(named.own);
    }
    if items.is_empty() {
        return Err(fields.mismatch("input", "a string or at least one item"));
    }
    Ok(items)
}

/// What an input item calls itself and others.
#[derive(Default)]
struct ItemIds {
    own: Option<String>,
    /// Whether it stands for the item of its id.
    is_reference: bool,
    /// The call whose output it is.
    output_of: Option<String>,
}

fn ids_of(item: Json<'_>) -> Result<ItemIds, Failure> {
    if item.kind() != Kind::Object {
        return Ok(ItemIds::default());
    }
    let members = item.members()?;
    let of = |name: &str| members.iter().find(|m| m.name == name).map(|m| m.value);
    let text = |name: &str| of(name).and_then(Json::as_text);
    let kind = text("type");
    let is_output = kind
        .as_ref()
        .is_some_and(|kind| kind.ends_with("_call_output"));
    Ok(ItemIds {
        own: text("id").map(Cow::into_owned),
        is_reference: kind.is_some_and(|kind| kind == "item_reference")
            || (of("type").is_none() && of("role").is_none()),
        output_of: is_output
            .then(|| text("call_id"))
            .flatten()
            .map(Cow::into_owned),
    })
}

struct Reasoning {
    wish: ThinkingWish,
    display: ReasoningDisplay,
}

fn reasoning(fields: &Fields, context: &RequestContext) -> Result<Reasoning, Failure> {
    let mut read = Reasoning {
        wish: ThinkingWish::default(),
        display: context.preferences.responses_reasoning,
    };
    let Some(reasoning) = fields.object("reasoning")? else {
        return Ok(read);
    };
    read.wish.effort = wishes::effort(&reasoning, "effort")?;
    read.wish.budget = reasoning.count("max_tokens")?.filter(|n| *n > 0);
    // The second is the older name of the same member.
    let summary = match reasoning.optional_str("summary")? {
        None => reasoning.optional_str("generate_summary")?,
        summary => summary,
    };
    read.display = match summary {
        None => read.display,
        Some("auto" | "concise" | "detailed") => ReasoningDisplay::Summary,
        Some("none") => ReasoningDisplay::Text,
        Some(other) => {
            let expected = "auto, concise, detailed or none";
            return Err(reasoning.unknown_word("summary", other, expected));
        }
    };
    Ok(read)
}

struct Include {
    encrypted_content: bool,
    logprobs: bool,
}

fn include(fields: &Fields) -> Result<Include, Failure> {
    let wishes = fields.words("include")?;
    let has = |name: &str| wishes.iter().any(|wish| wish == name);
    Ok(Include {
        encrypted_content: has("reasoning.encrypted_content"),
        logprobs: has("message.output_text.logprobs"),
    })
}

/// The schema that the answer follows, and the one that the prompt shows.
fn output_schema(fields: &Fields) -> Result<(Option<OutputSchema>, Option<Value>), Failure> {
    let format = match fields.object("text")? {
        Some(text) => text.object("format")?,
        None => None,
    };
    let Some(format) = format else {
        return Ok((None, None));
    };
    match format.str("type")? {
        "text" => Ok((None, None)),
        "json_object" => Ok((
            Some(OutputSchema {
                schema: json!({"type": "object"}),
                strict: true,
                place: format.path().to_owned(),
            }),
            None,
        )),
        "json_schema" => match choices::schema(&format, "schema")? {
            Some(schema) => {
                let shown = schema.schema.clone();
                Ok((Some(schema), Some(shown)))
            }
            None => Err(format.mismatch("schema", "a JSON schema")),
        },
        other => Err(format.unknown_word("type", other, "text, json_object or json_schema")),
    }
}

/// What says that requests belong together. An agent that works for another has a thread of its own.
fn affinity(fields: &Fields, context: &RequestContext) -> Result<Option<String>, Failure> {
    let header = ["thread-id", "session-id", "x-session-id", "session_id"]
        .iter()
        .find_map(|name| context.headers.get(*name));
    Ok(match header {
        Some(session) => Some(session.clone()),
        None => fields.optional_str("prompt_cache_key")?.map(str::to_owned),
    })
}

/// A float as it was written, not with the digits that widening it would add.
fn number(value: f32) -> Value {
    value
        .to_string()
        .parse::<f64>()
        .map_or(Value::Null, Value::from)
}

/// The members of the response object that repeat the request. `known` are those that have a
/// value also where the request says nothing.
fn echo(fields: &Fields, known: &[(&str, Value)]) -> Result<Map<String, Value>, Failure> {
    let or = |name: &str, default: Value| -> Result<Value, Failure> {
        Ok(fields.value(name)?.unwrap_or(default))
    };
    let known = |name: &str| {
        let found = known.iter().find(|(n, _)| *n == name);
        found.map_or(Value::Null, |(_, value)| value.clone())
    };
    let mut text = or("text", json!({}))?;
    if let Value::Object(members) = &mut text {
        let format = members.entry("format").or_insert(Value::Null);
        if format.is_null() {
            *format = json!({"type": "text"});
        }
    }
    let reasoning = or("reasoning", json!({}))?;
    let reasoning = json!({"effort": reasoning["effort"], "summary": reasoning["summary"]});
    let members = [
        ("model", known("model")),
        ("instructions", or("instructions", Value::Null)?),
        ("max_output_tokens", or("max_output_tokens", Value::Null)?),
        ("max_tool_calls", or("max_tool_calls", Value::Null)?),
        ("metadata", or("metadata", json!({}))?),
        ("parallel_tool_calls", known("parallel_tool_calls")),
        (
            "previous_response_id",
            or("previous_response_id", Value::Null)?,
        ),
        ("prompt_cache_key", or("prompt_cache_key", Value::Null)?),
        ("reasoning", reasoning),
        ("safety_identifier", or("safety_identifier", Value::Null)?),
        ("service_tier", or("service_tier", Value::Null)?),
        ("store", known("store")),
        ("temperature", known("temperature")),
        ("text", text),
        ("tool_choice", known("tool_choice")),
        ("tools", or("tools", json!([]))?),
        ("top_logprobs", known("top_logprobs")),
        ("top_p", known("top_p")),
        ("truncation", or("truncation", "disabled".into())?),
        ("user", or("user", Value::Null)?),
    ];
    let members = members
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value));
    Ok(members.collect())
}

/// The tools of an `additional_tools` item.
pub(super) fn item_tools(item: &Fields) -> Result<Vec<(Tool, Origin)>, Failure> {
    let mut read = Vec::new();
    for tool in item.objects("tools")? {
        read.extend(known_tool(&tool, None)?.unwrap_or_default());
    }
    Ok(read)
}

fn read_tool(
    tool: &Fields,
    context: &RequestContext,
    warnings: &mut Vec<String>,
) -> Result<Vec<(Tool, Origin)>, Failure> {
    if let Some(tools) = known_tool(tool, None)? {
        return Ok(tools);
    }
    // The vendor's servers run these; agents list them whether or not they can.
    if context.strict_tools {
        let path = tool.path_of("type");
        let message = format!("{path}: this server runs no tools itself.");
        return Err(unsupported(&path, message));
    }
    warnings.push(format!("{}: hosted tool left out", tool.path()));
    Ok(Vec::new())
}

/// The tools that one entry declares; `None` for one that a vendor's server would have to run.
fn known_tool(
    tool: &Fields,
    namespace: Option<&str>,
) -> Result<Option<Vec<(Tool, Origin)>>, Failure> {
    let origin = match (tool.str("type")?, namespace) {
        ("function", _) => Origin::Function {
            namespace: namespace.map(str::to_owned),
            name: tool.str("name")?.to_owned(),
        },
        ("custom", _) => Origin::Custom {
            namespace: namespace.map(str::to_owned),
            name: tool.str("name")?.to_owned(),
        },
        ("namespace", None) => {
            let space = tool.str("name")?;
            let mut inner = Vec::new();
            for member in tool.objects("tools")? {
                inner.extend(known_tool(&member, Some(space))?.unwrap_or_default());
            }
            return Ok(Some(inner));
        }
        ("local_shell", None) => Origin::LocalShell,
        ("shell", None) => match tool.object("environment")? {
            // A shell in a container is the vendor's.
            Some(environment) if environment.str("type")? != "local" => return Ok(None),
            _ => Origin::Shell,
        },
        ("apply_patch", None) => Origin::ApplyPatch,
        _ => return Ok(None),
    };
    let function = match origin::native_function(&origin) {
        Some(function) => function,
        None => function(tool, &origin, namespace)?,
    };
    let declared = Tool {
        name: function["name"].as_str().unwrap_or_default().to_owned(),
        function,
        input: match origin.is_custom() {
            true => tools::input_grammar(tool.object("format")?.as_ref())?,
            false => None,
        },
        deferred: tool.flag("defer_loading", false)?,
        origin: Value::Null,
    };
    Ok(Some(vec![(declared, origin)]))
}

fn function(tool: &Fields, origin: &Origin, namespace: Option<&str>) -> Result<Value, Failure> {
    let name = flat_name(namespace, tool.str("name")?);
    let description = tool.optional_str("description")?;
    if origin.is_custom() {
        let format = tool.object("format")?;
        return tools::custom_function(&name, description, format.as_ref());
    }
    let parameters = match tool.get("parameters") {
        None => json!({"type": "object", "properties": {}}),
        Some(schema) if schema.kind() == Kind::Object => schema.value()?,
        Some(_) => return Err(tool.mismatch("parameters", "a JSON schema")),
    };
    let mut function = Map::new();
    function.insert("name".to_owned(), name.into());
    if let Some(description) = description {
        function.insert("description".to_owned(), description.into());
    }
    function.insert("parameters".to_owned(), parameters);
    if let Some(strict) = tool.value("strict")? {
        function.insert("strict".to_owned(), strict);
    }
    Ok(function.into())
}

/// The choice, and how the response object repeats it.
fn tool_choice(
    fields: &Fields,
    declared: &[Tool],
    origins: &Origins,
) -> Result<(ToolChoice, Value), Failure> {
    let Some(value) = fields.get("tool_choice") else {
        return Ok((ToolChoice::Auto, "auto".into()));
    };
    let expected = "auto, none, required, a tool or allowed_tools";
    let choice = match value.kind() {
        Kind::Text => match fields.str("tool_choice")? {
            "auto" => ToolChoice::Auto,
            "none" => ToolChoice::None,
            "required" => ToolChoice::Required(Vec::new()),
            other => return Err(fields.unknown_word("tool_choice", other, expected)),
        },
        Kind::Object => {
            let Some(choice) = fields.object("tool_choice")? else {
                return Err(fields.mismatch("tool_choice", expected));
            };
            if choice.str("type")? == "allowed_tools" {
                let mut names = Vec::new();
                for tool in choice.objects("tools")? {
                    // Hosted tools were left out of the list of tools, too.
                    let is_ours = !matches!(chosen_name(&tool)?, Chosen::Hosted);
                    names.extend(is_ours.then(|| declared_name(&tool, declared, origins)));
                }
                let names = names.into_iter().collect::<Result<Vec<_>, _>>()?;
                match choice.optional_str("mode")? {
                    None | Some("auto") if names.is_empty() => ToolChoice::None,
                    None | Some("auto") => ToolChoice::Allowed(names),
                    Some("required") if names.is_empty() => {
                        return Err(choice.mismatch("tools", "at least one declared tool"));
                    }
                    Some("required") => ToolChoice::Required(names),
                    Some(other) => {
                        return Err(choice.unknown_word("mode", other, "auto or required"));
                    }
                }
            } else {
                ToolChoice::Required(vec![declared_name(&choice, declared, origins)?])
            }
        }
        _ => return Err(fields.mismatch("tool_choice", expected)),
    };
    if declared.is_empty() && !matches!(choice, ToolChoice::Auto | ToolChoice::None) {
        let expected = "auto or none, as there are no tools";
        return Err(fields.mismatch("tool_choice", expected));
    }
    Ok((choice, value.value()?))
}

/// What an entry of a tool choice names.
enum Chosen {
    Named(String),
    Hosted,
}

fn chosen_name(choice: &Fields) -> Result<Chosen, Failure> {
    Ok(match choice.str("type")? {
        "function" | "custom" => Chosen::Named(flat_name(
            choice.optional_str("namespace")?,
            choice.str("name")?,
        )),
        native @ ("local_shell" | "shell" | "apply_patch") => Chosen::Named(native.to_owned()),
        _ => Chosen::Hosted,
    })
}

fn declared_name(choice: &Fields, declared: &[Tool], origins: &Origins) -> Result<String, Failure> {
    let Chosen::Named(name) = chosen_name(choice)? else {
        let kind = choice.str("type")?;
        return Err(choice.unknown_word("type", kind, "the type of a tool that the client runs"));
    };
    if declared.iter().any(|tool| tool.name == name) {
        return Ok(name);
    }
    // Without its namespace, as the model may call it too.
    let origin = origins.of(&name);
    let found = declared
        .iter()
        .find(|tool| origins.of(&tool.name) == origin);
    match found {
        Some(tool) => Ok(tool.name.clone()),
        None => Err(choice.unknown_word("name", &name, "a tool that is declared in tools")),
    }
}
