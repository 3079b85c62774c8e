//! Content that must follow a JSON schema.

mod examples;
mod reader;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use ds4_text::Tokenizer;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory, TokenParser};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use crate::calls::{DelicateTokens, json_spelling};
use crate::generation::{Failure, FailureKind, OutputSchema};

pub use reader::SchemaReader;

/// In front of the text of tokens that are no text: the grammar never admits them.
const NO_TEXT: u8 = 0xff;
/// Compiled grammars that are kept, as agents send the same tools with every turn.
const MAX_KEPT: usize = 16;
/// Schemas of tools of which it is remembered what cannot be enforced.
const MAX_JUDGED: usize = 4096;

/// Compiles schemas and grammars for one vocabulary.
pub struct Schemas {
    factory: ParserFactory,
    delicate: Arc<DelicateTokens>,
    /// Grammars and what reads them, the one used last at the end.
    kept: Mutex<Vec<(String, Matcher)>>,
    /// What cannot be enforced of tools' schemas, by the digest of their text.
    judged: Mutex<HashMap<[u8; 32], Places>>,
}

/// Places of a schema: pointer and reason of each.
pub(crate) type Places = Arc<Vec<(String, String)>>;

impl Schemas {
    /// For this vocabulary. Tokens that end a reply or that no reply contains are never admitted;
    /// other markers are text.
    ///
    /// # Errors
    /// What the vocabulary lacks.
    pub fn new(tokenizer: &Tokenizer) -> Result<Schemas, String> {
        let mut words: Vec<Vec<u8>> = (0..tokenizer.n_vocab() as u32)
            .map(|token| tokenizer.token_bytes(token).to_vec())
            .collect();
        for word in &mut words {
            // No character begins with this byte; alone it would look like a marker.
            if word.first() == Some(&NO_TEXT) {
                word.clear();
            }
        }
        let ends = crate::reply::stop_tokens(tokenizer);
        for token in ends.into_iter().chain(tokenizer.never_sampled()) {
            let word = &mut words[token as usize];
            if word.first() != Some(&NO_TEXT) {
                word.insert(0, NO_TEXT);
            }
        }
        let info = TokRxInfo::new(words.len() as u32, tokenizer.protocol().eos);
        let trie = TokTrie::from(&info, &words);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&env).map_err(|e| e.to_string())?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.max_items_in_row = MAX_ITEMS_IN_ROW;
        limits.step_max_items = MAX_ITEMS_IN_STEP;
        limits.step_lexer_fuel = MAX_FUEL_IN_STEP;
        limits.max_lexer_states = MAX_LEXER_STATES;
        limits.verbose_errors = false;
        Ok(Schemas {
            factory,
            delicate: Arc::new(DelicateTokens::new(tokenizer)),
            kept: Mutex::default(),
            judged: Mutex::default(),
        })
    }

    /// What of a tool's schema cannot be enforced. It is looked for once: agents send the same tools
    /// with every turn.
    pub(crate) fn unenforceable(&self, schema: &Value) -> Places {
        let lock = || self.judged.lock().unwrap_or_else(PoisonError::into_inner);
        let key: [u8; 32] = Sha256::digest(schema.to_string()).into();
        if let Some(places) = lock().get(&key) {
            return Arc::clone(places);
        }
        // Arguments are an object, also where that is not said.
        let mut whole = schema.clone();
        if let Value::Object(members) = &mut whole {
            members.insert("type".to_owned(), "object".into());
        }
        let places = match self.parser(&whole) {
            Ok(_) => Vec::new(),
            Err(reason) => {
                let faults = self.faults(&whole).into_iter();
                let places = faults.map(|fault| (fault.place().to_owned(), fault.reason));
                let mut places: Vec<(String, String)> = places.collect();
                if places.is_empty() {
                    places.push(("its root".to_owned(), reason));
                }
                places
            }
        };
        let places = Arc::new(places);
        let mut judged = lock();
        if judged.len() == MAX_JUDGED {
            judged.clear();
        }
        judged.insert(key, Arc::clone(&places));
        places
    }

    pub(crate) fn delicate(&self) -> Arc<DelicateTokens> {
        Arc::clone(&self.delicate)
    }

    pub(crate) fn tok_env(&self) -> TokEnv {
        self.factory.tok_env().clone()
    }

    /// What reads by a grammar in the Lark dialect, and can begin.
    pub(crate) fn matcher(&self, lark: &str) -> Result<Matcher, String> {
        let lock = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kept = lock();
        if let Some(at) = kept.iter().position(|(known, _)| known == lark) {
            let found = kept.remove(at);
            let matcher = found.1.deep_clone();
            kept.push(found);
            return Ok(matcher);
        }
        drop(kept);
        let grammar = TopLevelGrammar::from_lark(lark.to_owned());
        let parser = self.factory.create_parser(grammar);
        let mut matcher = Matcher::new(Ok(parser.map_err(|e| first_line(format!("{e:#}")))?));
        let mask = matcher.compute_mask().map_err(first_line)?;
        if mask.is_zero() {
            return Err("nothing can satisfy it".to_owned());
        }
        let mut kept = lock();
        if kept.len() == MAX_KEPT {
            kept.remove(0);
        }
        kept.push((lark.to_owned(), matcher.deep_clone()));
        Ok(matcher)
    }

    /// A reader of content that must follow a schema, and a line for every keyword that was left
    /// out of it because it cannot be enforced, which happens only where the schema is not strict.
    ///
    /// # Errors
    /// A schema that is not one, or a strict one that asks for what cannot be enforced; the message
    /// has the JSON pointer of the place.
    pub fn compile(&self, wanted: &OutputSchema) -> Result<(SchemaReader, Vec<String>), Failure> {
        let place = &wanted.place;
        let refused = |message: String| Failure {
            kind: FailureKind::Unsupported,
            message,
            param: Some(place.clone()),
        };
        let mut faults = costly_multiples(&wanted.schema);
        let mut reason = String::new();
        if faults.is_empty() {
            match self.reader(&wanted.schema) {
                Ok(reader) => return Ok((reader, Vec::new())),
                Err(first) => reason = first,
            }
            faults = self.faults(&wanted.schema);
        }
        if faults.is_empty() {
            faults.push(Fault {
                pointer: String::new(),
                is_keyword: false,
                is_costly: false,
                reason,
            });
        }
        if wanted.strict {
            let first = &faults[0];
            return Err(refused(format!(
                "{place}: what stands at {} cannot be enforced ({}); leave it out, or set strict \
                 to false beside the schema to have it ignored.",
                first.place(),
                first.reason
            )));
        }
        let mut relaxed = wanted.schema.clone();
        for fault in &faults {
            fault.relax(&mut relaxed);
        }
        let mut reader = self.reader(&relaxed);
        if reader.is_err() && faults.iter().all(|fault| fault.is_costly) {
            // What else cannot be enforced is found now that looking for it is cheap.
            let more = self.faults(&relaxed);
            for fault in &more {
                fault.relax(&mut relaxed);
            }
            faults.extend(more);
            reader = self.reader(&relaxed);
        }
        let reader = reader.map_err(|reason| {
            refused(format!("{place}: the schema cannot be enforced: {reason}"))
        })?;
        let warnings = faults
            .iter()
            .map(|fault| format!("{place}: what stands at {} is not enforced", fault.place()));
        Ok((reader, warnings.collect()))
    }

    /// A reader that knows what may come first.
    fn reader(&self, schema: &Value) -> Result<SchemaReader, String> {
        let parser = self.parser(schema)?;
        let examples = examples::of(schema);
        let mut reader = SchemaReader::new(parser, self.tok_env(), self.delicate(), examples);
        // What nothing can begin is found here and not in the middle of a reply.
        reader
            .allowed(false)
            .map_err(|_| "nothing can satisfy it".to_owned())?;
        Ok(reader)
    }

    fn parser(&self, schema: &Value) -> Result<TokenParser, String> {
        let mut schema = schema.clone();
        if let Value::Object(members) = &mut schema {
            members.insert("x-guidance".to_owned(), json_spelling(false));
        }
        let grammar = TopLevelGrammar::from_json_schema(schema);
        let parser = self.factory.create_parser(grammar);
        // The rest of the message shows parts of the grammar.
        parser.map_err(|e| first_line(format!("{e:#}")))
    }

    /// The places of a schema that keep it from being enforced, as far as they can be told.
    fn faults(&self, schema: &Value) -> Vec<Fault> {
        if schema.to_string().len() > MAX_SEARCHED_BYTES {
            return Vec::new();
        }
        let mut search = FaultSearch {
            schemas: self,
            root: schema,
            n_trials: 0,
            faults: Vec::new(),
        };
        search.look_into(schema, String::new());
        search.faults
    }
}

/// Places in a grammar that one more character may have; more is an error of the reply.
const MAX_ITEMS_IN_ROW: usize = 20_000;
/// The same for all tokens that are tried for one place.
const MAX_ITEMS_IN_STEP: usize = 400_000;
/// Work on the automaton for all tokens that are tried for one place; a millisecond does 14,000.
const MAX_FUEL_IN_STEP: u64 = 2_000_000;
/// States of the automaton of a reply's strings and numbers, of 1 to 2 KiB each.
const MAX_LEXER_STATES: usize = 50_000;
/// Largest `multipleOf` that is enforced, in units of its last decimal: its automaton has as many
/// states, and building it knows no other bound.
const MAX_MULTIPLE: u64 = 10_000;
/// Trials of one search for faults. Every trial compiles a part of the schema.
const MAX_TRIALS: usize = 1_000;
/// Bytes of JSON of a schema that is searched for faults; a longer one is refused as a whole.
const MAX_SEARCHED_BYTES: usize = 64 << 10;

/// A place of a schema that cannot be enforced.
struct Fault {
    /// Its JSON pointer.
    pointer: String,
    /// Whether it is a keyword of a schema, or else a schema.
    is_keyword: bool,
    /// Whether finding out more would take too long.
    is_costly: bool,
    reason: String,
}

impl Fault {
    /// Where it is, for people.
    fn place(&self) -> &str {
        match self.pointer.as_str() {
            "" => "its root",
            pointer => pointer,
        }
    }

    /// Takes the keyword out, or lets the schema admit everything.
    fn relax(&self, root: &mut Value) {
        if !self.is_keyword {
            if let Some(schema) = root.pointer_mut(&self.pointer) {
                *schema = Value::Object(Map::new());
            }
            return;
        }
        if let Some((owner, keyword)) = self.pointer.rsplit_once('/')
            && let Some(Value::Object(members)) = root.pointer_mut(owner)
        {
            members.remove(&keyword.replace("~1", "/").replace("~0", "~"));
        }
    }
}

/// Looks for the places that cannot be enforced, by compiling parts of a schema.
struct FaultSearch<'a> {
    schemas: &'a Schemas,
    root: &'a Value,
    n_trials: usize,
    faults: Vec<Fault>,
}

impl FaultSearch<'_> {
    /// The innermost places of a schema that do not compile by themselves.
    fn look_into(&mut self, schema: &Value, pointer: String) {
        let Value::Object(members) = schema else {
            return;
        };
        let n_before = self.faults.len();
        for (keyword, value) in members {
            let at = format!("{pointer}/{}", escaped(keyword));
            let n_before = self.faults.len();
            match (keyword.as_str(), value) {
                (
                    "properties" | "patternProperties" | "$defs" | "definitions",
                    Value::Object(schemas),
                ) => {
                    for (name, schema) in schemas {
                        self.look_into(schema, format!("{at}/{}", escaped(name)));
                    }
                }
                ("anyOf" | "oneOf" | "allOf" | "prefixItems" | "items", Value::Array(schemas)) => {
                    for (i, schema) in schemas.iter().enumerate() {
                        self.look_into(schema, format!("{at}/{i}"));
                    }
                }
                ("items" | "additionalItems" | "additionalProperties", Value::Object(_)) => {
                    self.look_into(value, at.clone());
                }
                _ => {}
            }
            let is_definitions = matches!(keyword.as_str(), "$defs" | "definitions");
            if self.faults.len() == n_before && !is_definitions {
                let alone = Value::from_iter([(keyword.clone(), value.clone())]);
                self.try_alone(alone, at, true);
            }
        }
        if self.faults.len() == n_before {
            self.try_alone(schema.clone(), pointer, false);
        }
    }

    /// Compiles a part of the schema, beside the definitions that it may refer to.
    fn try_alone(&mut self, mut part: Value, pointer: String, is_keyword: bool) {
        if self.n_trials == MAX_TRIALS {
            return;
        }
        self.n_trials += 1;
        for name in ["$schema", "$defs", "definitions"] {
            if let (Some(definitions), Value::Object(part)) = (self.root.get(name), &mut part) {
                part.insert(name.to_owned(), definitions.clone());
            }
        }
        if let Err(reason) = self.schemas.parser(&part) {
            self.faults.push(Fault {
                pointer,
                is_keyword,
                is_costly: false,
                reason,
            });
        }
    }
}

/// A schema without the keywords that would take too long to compile, and those: pointer and
/// reason of each.
pub(crate) fn bounded(mut schema: Value) -> (Value, Vec<(String, String)>) {
    let faults = costly_multiples(&schema);
    let places = take_out(faults, &mut schema);
    (schema, places)
}

/// A schema without what cannot be enforced in it, and that: pointer and reason of each. Nothing is
/// taken out of one that is `strict`.
pub(crate) fn relaxed(
    schemas: &Schemas,
    mut schema: Value,
    strict: bool,
) -> (Value, Vec<(String, String)>) {
    let faults = schemas.faults(&schema);
    let places = match strict {
        true => take_out(faults, &mut schema.clone()),
        false => take_out(faults, &mut schema),
    };
    (schema, places)
}

fn take_out(faults: Vec<Fault>, schema: &mut Value) -> Vec<(String, String)> {
    let mut places = Vec::new();
    for fault in faults {
        fault.relax(schema);
        places.push((fault.place().to_owned(), fault.reason));
    }
    places
}

/// The `multipleOf` keywords whose automaton would be too large, alone or, where schemas can be
/// merged, together with the others.
fn costly_multiples(schema: &Value) -> Vec<Fault> {
    let mut found = Multiples::default();
    found.look_into(schema, String::new());
    let mut product: u64 = 1;
    let mut seen: Vec<u64> = Vec::new();
    let mut faults = Vec::new();
    for (pointer, multiple) in found.multiples {
        let units = multiple.unwrap_or(u64::MAX);
        let merged = match found.merges && !seen.contains(&units) {
            true => product.saturating_mul(units),
            false => units,
        };
        if merged > MAX_MULTIPLE {
            faults.push(Fault {
                pointer,
                is_keyword: true,
                is_costly: true,
                reason: format!(
                    "multiples of more than {MAX_MULTIPLE} units of the last decimal, those of \
                     schemas that are merged taken together"
                ),
            });
        } else if found.merges && !seen.contains(&units) {
            product = merged;
            seen.push(units);
        }
    }
    faults
}

/// The `multipleOf` keywords of a schema.
#[derive(Default)]
struct Multiples {
    /// Pointers, and the number in units of its last decimal, if that is small enough to tell.
    multiples: Vec<(String, Option<u64>)>,
    /// Whether keywords of several schemas can hold for one value.
    merges: bool,
}

impl Multiples {
    fn look_into(&mut self, value: &Value, pointer: String) {
        match value {
            Value::Object(members) => {
                for (name, member) in members {
                    match (name.as_str(), member) {
                        // No schemas in there.
                        ("const" | "enum" | "default" | "examples" | "example", _) => continue,
                        ("multipleOf", Value::Number(number)) => {
                            let at = format!("{pointer}/{name}");
                            self.multiples.push((at, units(&number.to_string())));
                        }
                        ("allOf" | "anyOf" | "oneOf" | "$ref", _) => self.merges = true,
                        _ => {}
                    }
                    self.look_into(member, format!("{pointer}/{}", escaped(name)));
                }
            }
            Value::Array(items) => {
                for (i, item) in items.iter().enumerate() {
                    self.look_into(item, format!("{pointer}/{i}"));
                }
            }
            _ => {}
        }
    }
}

/// A number's digits without its point, read as an integer.
fn units(literal: &str) -> Option<u64> {
    let (mantissa, exponent) = match literal.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse().ok()?),
        None => (literal, 0i32),
    };
    let (whole, decimals) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let decimals = decimals.trim_end_matches('0');
    let units: u64 = format!("{whole}{decimals}").parse().ok()?;
    match u32::try_from(exponent.saturating_sub(decimals.len() as i32)) {
        Ok(n_zeros) => units.checked_mul(10u64.checked_pow(n_zeros)?),
        Err(_) => Some(units),
    }
}

/// A name as a JSON pointer has it (RFC 6901).
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// What went wrong, without the parts of a grammar behind it.
pub(crate) fn first_line(error: impl std::fmt::Display) -> String {
    let error = error.to_string();
    error.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_multiple_counts_in_units_of_its_last_decimal() {
        for (literal, expected) in [
            ("7", Some(7)),
            ("7919.0", Some(7919)),
            ("0.25", Some(25)),
            ("2.5e1", Some(25)),
            ("2.5e3", Some(2500)),
            ("1e-7", Some(1)),
            ("1.20e+02", Some(120)),
            ("1e300", None),
            ("1e99999999999", None),
            ("99999999999999999999999", None),
        ] {
            assert_eq!(units(literal), expected, "{literal}");
        }
    }
}
