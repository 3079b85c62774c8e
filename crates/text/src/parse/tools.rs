//! The tools that a request declares.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

/// The declared tools: name to parameter schema. Cloning is cheap.
///
/// Without tools the markup of calls is plain text.
#[derive(Clone, Debug, Default)]
pub struct ToolSchemas(Arc<HashMap<String, Value>>);

impl FromIterator<(String, Value)> for ToolSchemas {
    fn from_iter<I: IntoIterator<Item = (String, Value)>>(tools: I) -> ToolSchemas {
        ToolSchemas(Arc::new(tools.into_iter().collect()))
    }
}

impl ToolSchemas {
    /// Whether a tool of this name is declared.
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Whether no tool is declared.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn property(&self, tool: &str, key: &str) -> Option<&Value> {
        self.0.get(tool)?.get("properties")?.get(key)
    }

    /// Whether a value without a usable flag is a string: where the schema says so or nothing.
    pub(super) fn takes_string(&self, tool: &str, key: &str) -> bool {
        match self.property(tool, key).map(|schema| &schema["type"]) {
            None => true,
            Some(Value::Array(types)) => types.iter().any(|t| t == "string"),
            Some(t) => t == "string",
        }
    }

    /// The first required key of `tool` for which `has` does not hold.
    pub(super) fn missing_key(&self, tool: &str, has: impl Fn(&str) -> bool) -> Option<&str> {
        let required = self.0.get(tool)?.get("required")?.as_array()?;
        let mut keys = required.iter().filter_map(Value::as_str);
        keys.find(|key| !has(key))
    }
}
