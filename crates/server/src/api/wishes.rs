//! What several protocols ask for in the same words: thinking, sampling, stop strings.

use ds4_engine::SamplingOptions;
use ds4_text::{Effort, Mode};

use crate::api::fields::Fields;
use crate::api::json::Kind;
use crate::api::{RequestContext, invalid};
use crate::generation::{Failure, FailureKind, Thinking};

/// Most stop strings of a request.
const MAX_STOP_STRINGS: usize = 16;
/// Longest stop string.
const MAX_STOP_BYTES: usize = 256;

/// What a request says about thinking; nothing where it says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ThinkingWish {
    /// It wants it on or off.
    pub(crate) on: Option<bool>,
    /// How hard; [`Effort::None`] wants it off.
    pub(crate) effort: Option<Effort>,
    /// Most reasoning tokens.
    pub(crate) budget: Option<usize>,
}

impl ThinkingWish {
    /// Whether the request wants it on or off, or so hard.
    pub(crate) fn says_something(&self) -> bool {
        self.on.is_some() || self.effort.is_some()
    }

    /// An explicit off wins over an effort, that over an explicit on, that over what the model's
    /// name means, and that over the server's default.
    pub(crate) fn resolve(
        &self,
        model: &str,
        server_default: Thinking,
        context: &RequestContext,
    ) -> Thinking {
        let preset = context.aliases.get(model).copied().flatten();
        let default = preset.unwrap_or(server_default);
        let says_something = self.says_something();
        let is_on = if self.on == Some(false) || self.effort == Some(Effort::None) {
            false
        } else if says_something {
            true
        } else if preset.is_none() && is_small(model) {
            false
        } else {
            default.mode == Mode::Thinking
        };
        if !is_on {
            return Thinking {
                mode: Mode::Chat,
                effort: Effort::None,
                budget: None,
            };
        }
        let default_effort = match default.mode {
            Mode::Thinking => default.effort,
            Mode::Chat => Effort::High,
        };
        Thinking {
            mode: Mode::Thinking,
            effort: self.effort.unwrap_or(default_effort),
            budget: match (self.budget, default.budget) {
                (Some(wish), Some(cap)) => Some(wish.min(cap)),
                (wish, cap) => wish.or(cap),
            },
        }
    }
}

/// Whether a name is that of a vendor's small model. Agents ask for those when they want a title
/// or a summary, which is not worth thinking about.
fn is_small(model: &str) -> bool {
    let mut words = model.split(|c: char| !c.is_ascii_alphanumeric());
    words.any(|word| {
        matches!(
            word.to_ascii_lowercase().as_str(),
            "haiku" | "mini" | "nano"
        )
    })
}

/// Refuses a model name that is none of ours, where the server is to be strict about them.
pub(crate) fn check_model(model: &str, context: &RequestContext) -> Result<(), Failure> {
    let is_ours = model == context.model_id || context.aliases.contains_key(model);
    if is_ours || !context.strict_models {
        return Ok(());
    }
    Err(Failure {
        kind: FailureKind::NotFound,
        message: format!("model: this server has {} only.", context.model_id),
        param: Some("model".to_owned()),
    })
}

/// Whether a `thinking` object switches it on.
pub(crate) fn thinking_type(thinking: &Fields) -> Result<bool, Failure> {
    match thinking.str("type")? {
        "disabled" => Ok(false),
        "enabled" | "adaptive" | "between_tools" => Ok(true),
        other => {
            let expected = "enabled, adaptive, between_tools or disabled";
            Err(thinking.unknown_word("type", other, expected))
        }
    }
}

/// An effort in the words of the APIs.
pub(crate) fn effort(fields: &Fields, name: &str) -> Result<Option<Effort>, Failure> {
    let Some(word) = fields.optional_str(name)? else {
        return Ok(None);
    };
    Ok(Some(match word {
        "none" => Effort::None,
        "minimal" | "low" => Effort::Low,
        "medium" | "high" | "xhigh" => Effort::High,
        "max" | "ultra" => Effort::Max,
        other => {
            let expected = "none, minimal, low, medium, high, xhigh, max or ultra";
            return Err(fields.unknown_word(name, other, expected));
        }
    }))
}

/// The sampling members; those that a request does not have keep the server's defaults.
pub(crate) fn sampling(fields: &Fields) -> Result<SamplingOptions, Failure> {
    let mut options = SamplingOptions::default();
    let take = |name: &str, option: &mut f32| -> Result<(), Failure> {
        if let Some(number) = fields.number(name)? {
            *option = number;
        }
        Ok(())
    };
    take("temperature", &mut options.temperature)?;
    take("top_p", &mut options.top_p)?;
    take("min_p", &mut options.min_p)?;
    take("presence_penalty", &mut options.presence_penalty)?;
    take("frequency_penalty", &mut options.frequency_penalty)?;
    take("repetition_penalty", &mut options.repetition_penalty)?;
    if let Some(value) = fields.get("top_k") {
        options.top_k = match value.as_i64() {
            Some(-1) => 0,
            Some(n) if n >= 0 => n as usize,
            _ => return Err(fields.mismatch("top_k", "an integer from 0, or -1 for all")),
        };
    }
    if let Some(value) = fields.get("seed") {
        let seed = value.as_u64().or_else(|| value.as_i64().map(|n| n as u64));
        options.seed = Some(seed.ok_or_else(|| fields.mismatch("seed", "an integer"))?);
    }
    // No member here names a token, so no vocabulary is too small.
    options.validate(usize::MAX).map_err(|error| {
        let path = fields.path_of(error.name);
        invalid(
            &path,
            format!(
                "{path}: found {}, expected {}.",
                error.found, error.expected
            ),
        )
    })?;
    Ok(options)
}

/// A list of stop strings; a lone string counts as a list of itself.
pub(crate) fn stop_strings(fields: &Fields, name: &str) -> Result<Vec<String>, Failure> {
    let expected = "up to 16 strings of 1 to 256 bytes";
    let items = match fields.get(name) {
        Some(lone) if lone.kind() == Kind::Text => vec![lone],
        _ => fields.array(name)?.unwrap_or_default(),
    };
    if items.len() > MAX_STOP_STRINGS {
        return Err(fields.mismatch(name, expected));
    }
    items
        .iter()
        .map(|item| match item.as_text() {
            Some(text) if (1..=MAX_STOP_BYTES).contains(&text.len()) => Ok(text.into_owned()),
            _ => Err(fields.mismatch(name, expected)),
        })
        .collect()
}
