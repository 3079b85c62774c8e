//! Declared tools: their names, and how one that was found later is shown.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use crate::api::fields::Fields;
use crate::api::invalid;
use crate::generation::{Failure, FailureKind, InputGrammar, Tool};

/// Most tools of a request.
const MAX_TOOLS: usize = 512;
/// Longest name of a tool.
const MAX_NAME_BYTES: usize = 128;

/// Checks number and names; `param` is the request's field.
pub(crate) fn check(tools: &[Tool], param: &str) -> Result<(), Failure> {
    if tools.len() > MAX_TOOLS {
        let n = tools.len();
        let message = format!("{param}: found {n} tools, expected at most {MAX_TOOLS}.");
        return Err(invalid(param, message));
    }
    let mut names = HashSet::new();
    for tool in tools {
        let name = &tool.name;
        let is_valid = (1..=MAX_NAME_BYTES).contains(&name.len())
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_.:/-".contains(&b));
        if !is_valid {
            let message = format!(
                "{param}: a tool's name must be 1 to {MAX_NAME_BYTES} of the characters \
                 A-Z a-z 0-9 _ . : / -."
            );
            return Err(invalid(param, message));
        }
        if !names.insert(name) {
            let message = format!("{param}: the tool \"{name}\" is declared twice.");
            return Err(invalid(param, message));
        }
    }
    Ok(())
}

/// What stands for an image or the like in a prompt.
pub(crate) fn omitted(noun: &str) -> String {
    format!("[{noun} omitted: this model reads text only]")
}

/// The refusal of an image or the like at `path`.
pub(crate) fn refused(path: &str, noun: &str) -> Failure {
    Failure {
        kind: FailureKind::UnsupportedContent,
        message: format!("{path}: found {noun}, expected text, which is all this model reads."),
        param: Some(path.to_owned()),
    }
}

/// The text that stands where the client says that tools `names` were found.
///
/// A deferred tool's function object is written here and not into the head of the prompt, so that
/// what stands before this place stays as it was. A tool of the head is only named.
pub(crate) fn found_text(names: &[String], declared: &[Tool]) -> String {
    let mut text = String::new();
    let mut line = |line: &str| {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(line);
    };
    let find = |name: &String| declared.iter().find(|tool| tool.name == *name);
    let (late, known): (Vec<&String>, Vec<&String>) = names
        .iter()
        .partition(|name| find(name).is_some_and(|tool| tool.deferred));
    for name in known {
        line(&format!("Found the tool {name}."));
    }
    if !late.is_empty() {
        line("These tools are available from here on, in addition to those above:");
        for tool in late.into_iter().filter_map(find) {
            line(&ds4_text::json::to_string(&tool.function));
        }
    }
    text
}

/// The member of a custom tool's arguments that holds its raw input.
pub(crate) const INPUT: &str = "input";

/// What the raw text of a custom tool must follow: `syntax` and `definition`.
pub(crate) fn input_grammar(grammar: Option<&Fields>) -> Result<Option<InputGrammar>, Failure> {
    let Some(grammar) = grammar else {
        return Ok(None);
    };
    let Some(definition) = grammar.optional_str("definition")? else {
        return Ok(None);
    };
    match grammar.optional_str("syntax")? {
        None | Some("lark") => Ok(Some(InputGrammar::Lark(definition.to_owned()))),
        Some("regex") => Ok(Some(InputGrammar::Regex(definition.to_owned()))),
        Some(other) => Err(grammar.unknown_word("syntax", other, "lark or regex")),
    }
}

/// The function that stands in the prompt for a custom tool, which takes raw text: it has one
/// string. `grammar` has the text of the grammar that the input follows, if there is one.
pub(crate) fn custom_function(
    name: &str,
    description: Option<&str>,
    grammar: Option<&Fields>,
) -> Result<Value, Failure> {
    let mut description = description.map(str::to_owned);
    if let Some(grammar) = grammar
        && let Some(definition) = grammar.optional_str("definition")?
    {
        let syntax = grammar.optional_str("syntax")?.unwrap_or("given");
        let text = description.get_or_insert_default();
        if !text.is_empty() {
            text.push_str("\n\n");
        }
        text.push_str(&format!(
            "The input follows this {syntax} grammar:\n{definition}"
        ));
    }
    let mut function = Map::new();
    function.insert("name".to_owned(), name.into());
    if let Some(description) = description {
        function.insert("description".to_owned(), description.into());
    }
    let parameters = json!({
        "type": "object",
        "properties": {INPUT: {"type": "string"}},
        "required": [INPUT],
    });
    function.insert("parameters".to_owned(), parameters);
    Ok(function.into())
}
