//! What calls of the declared tools may say.

use serde_json::Value;

use super::closing::Closing;
use super::json::Kinds;
use crate::generation::{Generation, ToolChoice};

/// Bytes of a parameter's name, beyond which readers take its tag for text.
pub(super) const MAX_KEY_BYTES: usize = 1024;
/// Schemas inside schemas that are looked into for the kinds of a value.
const MAX_NESTING: usize = 8;

/// One tool.
#[derive(Clone, Debug)]
pub(super) struct ToolRules {
    pub(super) name: String,
    pub(super) parameters: Vec<ParameterRules>,
    /// Whether other names may be given: the schema says so, or lists no names.
    pub(super) others: bool,
    /// Those without which a call is not complete.
    pub(super) required: Vec<String>,
}

/// One parameter.
#[derive(Clone, Debug)]
pub(super) struct ParameterRules {
    /// Its name, as the schema has it.
    pub(super) key: String,
    pub(super) value: ValueRules,
}

/// What a value may be.
#[derive(Clone, Debug)]
pub(super) struct ValueRules {
    /// Whether it may be a string.
    pub(super) string: bool,
    /// The strings that it may be, when they are listed.
    pub(super) choices: Option<Vec<String>>,
    /// What it may be besides strings.
    pub(super) json: Kinds,
}

impl ValueRules {
    /// What a value may be of which nothing is said.
    pub(super) fn any() -> ValueRules {
        ValueRules {
            string: true,
            choices: None,
            json: Kinds::ANY.without(Kinds::STRING),
        }
    }

    fn new(schema: &Value) -> ValueRules {
        let kinds = kinds(schema, MAX_NESTING);
        let listed = match (&schema["enum"], &schema["const"]) {
            (Value::Array(values), _) => values.clone(),
            (_, Value::String(value)) => vec![Value::from(value.as_str())],
            _ => Vec::new(),
        };
        let strings = listed.iter().filter_map(Value::as_str).map(str::to_owned);
        let strings: Vec<String> = strings.collect();
        let choices = !strings.is_empty() && strings.iter().all(|text| Closing::admits(text));
        let rules = ValueRules {
            string: kinds.has(Kinds::STRING),
            choices: choices.then_some(strings),
            json: kinds.without(Kinds::STRING),
        };
        // What nothing can satisfy is not meant.
        match rules.string || !rules.json.is_empty() {
            true => rules,
            false => ValueRules::any(),
        }
    }
}

impl ToolRules {
    /// The tools that a reply may call.
    pub(super) fn of(generation: &Generation) -> Vec<ToolRules> {
        let admitted = |name: &String| match &generation.tool_choice {
            ToolChoice::None => false,
            ToolChoice::Auto => true,
            ToolChoice::Required(names) => names.is_empty() || names.contains(name),
            ToolChoice::Allowed(names) => names.contains(name),
        };
        let tools = generation.tools.iter().filter(|tool| admitted(&tool.name));
        tools
            .map(|tool| ToolRules::new(&tool.name, &tool.function["parameters"]))
            .collect()
    }

    fn new(name: &str, schema: &Value) -> ToolRules {
        let properties = schema["properties"].as_object();
        let mut parameters: Vec<ParameterRules> = properties
            .into_iter()
            .flatten()
            .filter(|(key, _)| is_key(key))
            .map(|(key, schema)| ParameterRules {
                key: key.clone(),
                value: ValueRules::new(schema),
            })
            .collect();
        let others = match &schema["additionalProperties"] {
            Value::Null => properties.is_none(),
            Value::Bool(others) => *others,
            _ => true,
        };
        let required = schema["required"].as_array().into_iter().flatten();
        let required = required.filter_map(Value::as_str).map(str::to_owned);
        let mut required: Vec<String> = required.collect();
        for key in &required {
            if others && is_key(key) && parameters.iter().all(|rules| rules.key != *key) {
                parameters.push(ParameterRules {
                    key: key.clone(),
                    value: ValueRules::any(),
                });
            }
        }
        // What cannot be given is not waited for.
        required.retain(|key| parameters.iter().any(|rules| rules.key == *key));
        ToolRules {
            name: name.to_owned(),
            parameters,
            others,
            required,
        }
    }
}

fn is_key(key: &str) -> bool {
    !key.is_empty() && key.len() <= MAX_KEY_BYTES
}

/// The kinds of values that a schema admits, or more of them where it says so in other ways than
/// by types, listed values and alternatives.
fn kinds(schema: &Value, nesting: usize) -> Kinds {
    let all = |kinds: &mut dyn Iterator<Item = Kinds>| kinds.fold(Kinds::NONE, Kinds::or);
    match (&schema["type"], &schema["enum"], schema.get("const")) {
        (Value::String(name), _, _) => named(name),
        (Value::Array(names), _, _) => all(&mut names.iter().filter_map(Value::as_str).map(named)),
        (_, Value::Array(values), _) => all(&mut values.iter().map(kind_of)),
        (_, _, Some(value)) => kind_of(value),
        _ => match (&schema["anyOf"], &schema["oneOf"]) {
            (Value::Array(schemas), _) | (_, Value::Array(schemas)) if nesting > 0 => {
                all(&mut schemas.iter().map(|schema| kinds(schema, nesting - 1)))
            }
            _ => Kinds::ANY,
        },
    }
}

fn named(name: &str) -> Kinds {
    match name {
        "string" => Kinds::STRING,
        "integer" => Kinds::INTEGER,
        "number" => Kinds::NUMBER,
        "boolean" => Kinds::BOOLEAN,
        "null" => Kinds::NULL,
        "object" => Kinds::OBJECT,
        "array" => Kinds::ARRAY,
        _ => Kinds::ANY,
    }
}

fn kind_of(value: &Value) -> Kinds {
    match value {
        Value::Null => Kinds::NULL,
        Value::Bool(_) => Kinds::BOOLEAN,
        Value::Number(number) if number.is_i64() || number.is_u64() => Kinds::INTEGER,
        Value::Number(_) => Kinds::NUMBER,
        Value::String(_) => Kinds::STRING,
        Value::Array(_) => Kinds::ARRAY,
        Value::Object(_) => Kinds::OBJECT,
    }
}
