//! What calls of the declared tools may say.

use serde_json::{Map, Value, json};

use super::strings::TextRule;
use crate::generation::{Generation, InputGrammar, Tool, ToolChoice};

/// Bytes of a parameter's name, beyond which readers take its tag for text.
const MAX_KEY_BYTES: usize = 1024;
/// Schemas inside schemas that are looked into for what a value may be.
pub(super) const MAX_NESTING: usize = 16;
/// Keywords of a tool's whole schema that say more than which parameters there are.
const UNENFORCED: [&str; 13] = [
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "patternProperties",
    "propertyNames",
    "minProperties",
    "maxProperties",
    "unevaluatedProperties",
];

/// One tool.
#[derive(Clone, Debug)]
pub(super) struct ToolRules {
    pub(super) name: String,
    /// Those that are required come first.
    pub(super) parameters: Vec<ParameterRules>,
    pub(super) n_required: usize,
    /// What parameters of other names may be; `None` when there may be none: the schema says so,
    /// or lists names and does not speak of others.
    pub(super) others: Option<ValueRules>,
    /// The regular expression that the tool's one string follows, if it has one.
    pub(super) input: Option<String>,
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
    /// What it may be as a string; nothing when it may be none.
    pub(super) texts: Vec<TextRule>,
    /// The schema of what it may be besides strings, which stands for itself.
    pub(super) json: Option<Value>,
}

impl ValueRules {
    /// What a value may be of which nothing is said.
    fn any() -> ValueRules {
        ValueRules {
            texts: vec![TextRule::default()],
            json: Some(json!({"type": Kinds::ANY.without(Kinds::STRING).names()})),
        }
    }

    fn new(schema: &Value, root: &Value) -> ValueRules {
        let kinds = kinds(schema, root, MAX_NESTING);
        let others = kinds.without(Kinds::STRING);
        let rules = ValueRules {
            texts: match kinds.has(Kinds::STRING) {
                true => TextRule::of(schema, root),
                false => Vec::new(),
            },
            json: (!others.is_empty())
                .then(|| standalone(&without_strings(schema, root, kinds, MAX_NESTING), root)),
        };
        // What nothing can satisfy is not meant.
        match rules.texts.is_empty() && rules.json.is_none() {
            true => ValueRules::any(),
            false => rules,
        }
    }
}

/// The tools that a reply may call.
pub(super) fn admitted(generation: &Generation) -> Vec<&Tool> {
    let admits = |tool: &&Tool| match &generation.tool_choice {
        ToolChoice::None => false,
        ToolChoice::Auto => true,
        ToolChoice::Required(names) => names.is_empty() || names.contains(&tool.name),
        ToolChoice::Allowed(names) => names.contains(&tool.name),
    };
    generation.tools.iter().filter(admits).collect()
}

/// Whether a tool's schema is to be enforced as a whole or its request refused.
pub(super) fn is_strict(tool: &Tool) -> bool {
    tool.function["strict"] == true
}

/// Keywords of a tool's whole schema that are not enforced.
pub(super) fn unenforced(schema: &Value) -> impl Iterator<Item = &'static str> {
    UNENFORCED
        .into_iter()
        .filter(|name| schema.get(*name).is_some())
}

impl ToolRules {
    /// Of a tool with these parameters.
    pub(super) fn new(tool: &Tool, root: &Value) -> ToolRules {
        let schema = deref(root, root).unwrap_or(root);
        let properties = schema["properties"].as_object();
        let mut parameters: Vec<ParameterRules> = properties
            .into_iter()
            .flatten()
            .filter(|(key, _)| is_key(key))
            .map(|(key, schema)| ParameterRules {
                key: key.clone(),
                value: ValueRules::new(schema, root),
            })
            .collect();
        let others = match &schema["additionalProperties"] {
            Value::Null => properties.is_none().then(ValueRules::any),
            Value::Bool(others) => others.then(ValueRules::any),
            schema => Some(ValueRules::new(schema, root)),
        };
        let required = schema["required"].as_array().into_iter().flatten();
        let required: Vec<&str> = required.filter_map(Value::as_str).collect();
        for key in &required {
            let is_listed = parameters.iter().any(|rules| rules.key == **key);
            if let (Some(value), true) = (&others, is_key(key) && !is_listed) {
                parameters.push(ParameterRules {
                    key: (*key).to_owned(),
                    value: value.clone(),
                });
            }
        }
        // What cannot be given is not waited for.
        let is_required = |rules: &ParameterRules| required.contains(&rules.key.as_str());
        parameters.sort_by_key(|rules| !is_required(rules));
        ToolRules {
            name: tool.name.clone(),
            n_required: parameters.iter().filter(|rules| is_required(rules)).count(),
            parameters,
            others,
            input: match &tool.input {
                Some(InputGrammar::Regex(regex)) => Some(regex.clone()),
                // That is followed beside the grammar of the block.
                Some(InputGrammar::Lark(_)) | None => None,
            },
        }
    }
}

fn is_key(key: &str) -> bool {
    !key.is_empty() && key.len() <= MAX_KEY_BYTES
}

/// What a schema's reference within its document points to.
pub(super) fn deref<'a>(schema: &Value, root: &'a Value) -> Option<&'a Value> {
    let reference = schema.get("$ref")?.as_str()?.strip_prefix('#')?;
    root.pointer(reference)
        .filter(|target| !std::ptr::eq(*target, schema))
}

/// Kinds of JSON values, as a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kinds(u8);

impl Kinds {
    const NONE: Kinds = Kinds(0);
    const STRING: Kinds = Kinds(1);
    const INTEGER: Kinds = Kinds(2);
    /// Integers too.
    const NUMBER: Kinds = Kinds(2 | 4);
    const BOOLEAN: Kinds = Kinds(8);
    const NULL: Kinds = Kinds(16);
    const OBJECT: Kinds = Kinds(32);
    const ARRAY: Kinds = Kinds(64);
    const ANY: Kinds = Kinds(127);

    const NAMED: [(&str, Kinds); 7] = [
        ("string", Kinds::STRING),
        ("number", Kinds::NUMBER),
        ("integer", Kinds::INTEGER),
        ("boolean", Kinds::BOOLEAN),
        ("null", Kinds::NULL),
        ("object", Kinds::OBJECT),
        ("array", Kinds::ARRAY),
    ];

    fn named(name: &str) -> Kinds {
        let mut named = Kinds::NAMED.iter();
        let found = named.find(|(known, _)| *known == name);
        found.map_or(Kinds::ANY, |(_, kinds)| *kinds)
    }

    /// As the keyword `type` has them.
    fn names(self) -> Vec<&'static str> {
        let mut left = self;
        let mut names = Vec::new();
        for (name, kinds) in Kinds::NAMED {
            if left.has(kinds) {
                names.push(name);
                left = left.without(kinds);
            }
        }
        names
    }

    fn of(value: &Value) -> Kinds {
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

    fn or(self, other: Kinds) -> Kinds {
        Kinds(self.0 | other.0)
    }

    fn and(self, other: Kinds) -> Kinds {
        Kinds(self.0 & other.0)
    }

    fn without(self, other: Kinds) -> Kinds {
        Kinds(self.0 & !other.0)
    }

    fn has(self, other: Kinds) -> bool {
        self.0 & other.0 == other.0
    }

    fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// The kinds of values that a schema admits, or more of them where it says so in other ways than
/// by types, listed values, references and alternatives.
fn kinds(schema: &Value, root: &Value, nesting: usize) -> Kinds {
    let Value::Object(members) = schema else {
        return match schema {
            Value::Bool(false) => Kinds::NONE,
            _ => Kinds::ANY,
        };
    };
    if nesting == 0 {
        return Kinds::ANY;
    }
    let any_of = |each: &mut dyn Iterator<Item = Kinds>| each.fold(Kinds::NONE, Kinds::or);
    let mut found = match members.get("type") {
        Some(Value::String(name)) => Kinds::named(name),
        Some(Value::Array(names)) if !names.is_empty() => {
            any_of(&mut names.iter().filter_map(Value::as_str).map(Kinds::named))
        }
        _ => Kinds::ANY,
    };
    match (members.get("enum"), members.get("const")) {
        (Some(Value::Array(values)), _) => {
            found = found.and(any_of(&mut values.iter().map(Kinds::of)));
        }
        (_, Some(value)) => found = found.and(Kinds::of(value)),
        _ => {}
    }
    if let Some(target) = deref(schema, root) {
        found = found.and(kinds(target, root, nesting - 1));
    }
    for name in ["anyOf", "oneOf"] {
        if let Some(Value::Array(schemas)) = members.get(name) {
            let each = &mut schemas
                .iter()
                .map(|schema| kinds(schema, root, nesting - 1));
            found = found.and(any_of(each));
        }
    }
    if let Some(Value::Array(schemas)) = members.get("allOf") {
        for schema in schemas {
            found = found.and(kinds(schema, root, nesting - 1));
        }
    }
    found
}

/// A schema of what another admits besides strings.
fn without_strings(schema: &Value, root: &Value, found: Kinds, nesting: usize) -> Value {
    if !found.has(Kinds::STRING) {
        return schema.clone();
    }
    let others = found.without(Kinds::STRING);
    let Value::Object(members) = schema else {
        return json!({"type": others.names()});
    };
    let mut left = members.clone();
    let names = ["$ref", "anyOf", "oneOf", "allOf", "not", "if"];
    let composed: Vec<&str> = names
        .into_iter()
        .filter(|name| members.contains_key(*name))
        .collect();
    match composed[..] {
        [] => {
            if let Some(Value::Array(values)) = left.get_mut("enum") {
                values.retain(|value| !value.is_string());
            } else {
                left.insert("type".to_owned(), json!(others.names()));
            }
        }
        [name @ ("anyOf" | "oneOf")] if nesting > 0 => {
            left.remove("type");
            if let Some(Value::Array(schemas)) = left.get_mut(name) {
                let each = std::mem::take(schemas).into_iter().filter_map(|schema| {
                    let found = kinds(&schema, root, nesting - 1);
                    let others = found.without(Kinds::STRING);
                    (!others.is_empty()).then(|| without_strings(&schema, root, found, nesting - 1))
                });
                *schemas = each.collect();
            }
        }
        ["$ref"] if members.len() == 1 && nesting > 0 => {
            return match deref(schema, root) {
                Some(target) => without_strings(target, root, found, nesting - 1),
                None => schema.clone(),
            };
        }
        _ => return json!({"allOf": [schema, {"type": others.names()}]}),
    }
    Value::Object(left)
}

/// A part of a document with what it refers to, so that it stands for itself.
fn standalone(schema: &Value, root: &Value) -> Value {
    let mut found = References::default();
    found.look_into(schema, root);
    let mut alone = match schema {
        Value::Object(members) => members.clone(),
        _ => Map::new(),
    };
    if found.elsewhere {
        let mut whole = root.clone();
        move_references(&mut whole);
        let mut part = Value::Object(alone);
        move_references(&mut part);
        part["$defs"] = json!({ROOT: whole});
        return part;
    }
    for (place, names) in [("$defs", found.defs), ("definitions", found.definitions)] {
        if !names.is_empty() {
            let all = names.into_iter().filter_map(|name| {
                let schema = root[place].get(&name)?.clone();
                Some((name, schema))
            });
            alone.insert(place.to_owned(), Value::Object(all.collect()));
        }
    }
    Value::Object(alone)
}

/// Where a whole document stands among the definitions of its part.
const ROOT: &str = "__document";

fn move_references(value: &mut Value) {
    match value {
        Value::Object(members) => {
            for (name, member) in members.iter_mut() {
                match member {
                    Value::String(reference) if name == "$ref" && reference.starts_with('#') => {
                        let behind = reference[1..].trim_end_matches('/').to_owned();
                        *reference = format!("#/$defs/{ROOT}{behind}");
                    }
                    member => move_references(member),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(move_references),
        _ => {}
    }
}

/// What a schema refers to in its document.
#[derive(Default)]
struct References {
    defs: Vec<String>,
    definitions: Vec<String>,
    /// Whether it refers to another place than a definition.
    elsewhere: bool,
}

impl References {
    fn look_into(&mut self, value: &Value, root: &Value) {
        match value {
            Value::Object(members) => {
                for (name, member) in members {
                    match member {
                        Value::String(reference) if name == "$ref" => self.follow(reference, root),
                        member => self.look_into(member, root),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| self.look_into(item, root)),
            _ => {}
        }
    }

    fn follow(&mut self, reference: &str, root: &Value) {
        let parts: Vec<&str> = reference.splitn(4, '/').collect();
        let (place, name) = match parts[..] {
            ["#", place @ ("$defs" | "definitions"), name] => (place, name),
            _ => {
                self.elsewhere |= reference.starts_with('#');
                return;
            }
        };
        let known = match place {
            "$defs" => &mut self.defs,
            _ => &mut self.definitions,
        };
        if known.iter().any(|known| known == name) {
            return;
        }
        known.push(name.to_owned());
        if let Some(schema) = root[place].get(name) {
            self.look_into(schema, root);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_told_apart_from_its_strings() {
        let root = json!({"$defs": {
            "O": {"type": "object", "properties": {"next": {"$ref": "#/$defs/O"}}},
            "E": {"enum": ["a", 1]},
            "unused": {"type": "integer"},
        }, "properties": {"p": {"type": "integer"}}});
        let of = |schema: Value| {
            let rules = ValueRules::new(&schema, &root);
            (rules.texts.len(), rules.json)
        };
        let defs = json!({"O": root["$defs"]["O"]});
        assert_eq!(of(json!({"type": "string"})), (1, None));
        assert_eq!(
            of(json!({"type": ["string", "null"]})),
            (1, Some(json!({"type": ["null"]})))
        );
        assert_eq!(
            of(json!({"$ref": "#/$defs/O"})),
            (0, Some(json!({"$ref": "#/$defs/O", "$defs": defs})))
        );
        assert_eq!(
            of(json!({"$ref": "#/$defs/E"})),
            (1, Some(json!({"enum": [1]})))
        );
        assert_eq!(
            of(json!({"anyOf": [{"type": "string"}, {"$ref": "#/$defs/O"}]})),
            (
                1,
                Some(json!({"anyOf": [{"$ref": "#/$defs/O"}], "$defs": defs}))
            )
        );
        let elsewhere = of(json!({"type": "array", "items": {"$ref": "#/properties/p"}})).1;
        let elsewhere = elsewhere.expect("an array");
        let moved = elsewhere["items"]["$ref"].as_str().expect("a reference");
        assert_eq!(
            elsewhere.pointer(&moved[1..]),
            Some(&json!({"type": "integer"}))
        );
        let (n_texts, any) = of(json!({}));
        assert_eq!(n_texts, 1);
        let others = json!({"type": ["number", "boolean", "null", "object", "array"]});
        assert_eq!(any, Some(others));
    }
}
