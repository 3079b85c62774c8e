//! Content that must follow a JSON schema.

use std::sync::Arc;

use ds4_engine::TokenSet;
use ds4_text::Tokenizer;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory, TokenParser};
use serde_json::{Map, Value};

use crate::generation::{Failure, FailureKind, OutputSchema};

/// In front of the text of tokens that are no text: the grammar never admits them.
const NO_TEXT: u8 = 0xff;

/// Compiles schemas for one vocabulary.
pub struct Schemas {
    factory: ParserFactory,
}

impl Schemas {
    /// For this vocabulary.
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
        for (token, text) in tokenizer.added_tokens() {
            let mut word = vec![NO_TEXT];
            word.extend_from_slice(text.as_bytes());
            words[token as usize] = word;
        }
        let info = TokRxInfo::new(words.len() as u32, tokenizer.protocol().eos);
        let trie = TokTrie::from(&info, &words);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&env).map_err(|e| e.to_string())?;
        factory.quiet();
        Ok(Schemas { factory })
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
        let reason = match self.parser(&wanted.schema) {
            Ok(parser) => return Ok((SchemaReader::new(parser), Vec::new())),
            Err(reason) => reason,
        };
        let faults = self.faults(&wanted.schema);
        let Some(first) = faults.first() else {
            let message = format!("{place}: the schema cannot be enforced: {reason}");
            return Err(refused(message));
        };
        if wanted.strict {
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
        let parser = self.parser(&relaxed).map_err(|reason| {
            refused(format!("{place}: the schema cannot be enforced: {reason}"))
        })?;
        let warnings = faults
            .iter()
            .map(|fault| format!("{place}: what stands at {} is not enforced", fault.place()));
        Ok((SchemaReader::new(parser), warnings.collect()))
    }

    fn parser(&self, schema: &Value) -> Result<TokenParser, String> {
        let grammar = TopLevelGrammar::from_json_schema(schema.clone());
        let parser = self.factory.create_parser(grammar);
        // The rest of the message shows parts of the grammar.
        parser.map_err(|e| {
            let reason = format!("{e:#}");
            reason.lines().next().unwrap_or_default().to_owned()
        })
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
                reason,
            });
        }
    }
}

/// A name as a JSON pointer has it (RFC 6901).
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// Says which tokens keep the content on its schema.
pub struct SchemaReader {
    matcher: Matcher,
    begun: bool,
}

impl SchemaReader {
    fn new(parser: TokenParser) -> SchemaReader {
        SchemaReader {
            matcher: Matcher::new(Ok(parser)),
            begun: false,
        }
    }

    /// Whether content was read.
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// Tokens that may come next, the end-of-sentence token where the content may end. `None`
    /// when the reader has lost its way, which leaves the content free.
    pub fn allowed(&mut self) -> Option<TokenSet> {
        let mask = self.matcher.compute_mask_or_eos().ok()?;
        Some(TokenSet::from_words(mask.as_slice().to_vec()))
    }

    /// Reads a token of the content.
    pub fn push(&mut self, token: u32) {
        self.begun = true;
        // A token that was not allowed ends the guidance; `allowed` says so.
        let _ = self.matcher.consume_token(token);
    }
}
