//! Tool calls that cannot be malformed: what may follow in a block of calls while it is written.
//!
//! From the marker that opens a block on, a [`CallReader`] admits only tokens that keep the block
//! well-formed, as `ds4_text::parse_strict` and the tolerant parser both read it, and its arguments
//! on their schemas: the names of tools that may be called, the parameters that their schemas list
//! and none twice, `string="true"` or `"false"` as the schemas have it, strings and JSON that follow
//! the parameter's schema with all that it refers to, and the closing tags, an invocation's only
//! when nothing required is missing. A schema that lists properties and does not speak of others is
//! taken to mean those alone.
//!
//! One grammar says all of this. What it cannot say is checked beside it: a closing tag in a JSON
//! string, which readers of tags would end the value at, JSON that is nested too deep to be read, a
//! name that the schema does not list and that was given before, and the raw text of a tool that has a
//! grammar of its own.

mod closing;
mod grammar;
mod input;
mod names;
mod place;
mod rules;
mod strings;

use std::collections::HashSet;
use std::sync::Arc;

use ds4_engine::TokenSet;
use ds4_text::Tokenizer;
use llguidance::Matcher;
use llguidance::toktrie::TokEnv;
use serde_json::Value;

use crate::generation::{Failure, FailureKind, Generation, InputGrammar, Tool};
use crate::schema::{Schemas, first_line, relaxed};
use closing::{Closing, Read};
use grammar::VALUE_CLOSE;
use input::{InputReader, may_follow};
use names::Names;
use place::Place;
use rules::ToolRules;

pub(crate) use grammar::json_spelling;

/// What opens the markup of a block. Reading begins behind it.
pub(crate) const MARKUP_OPEN: &str = "<｜DSML｜";

/// Bytes of markup that can open an input: a tool's name, its parameter's, and what is around them.
const MAX_OPENING_BYTES: usize = 512;

/// Tokens that the grammar alone may admit where they cannot be.
pub(crate) struct DelicateTokens {
    /// Every token's bytes.
    words: Vec<Vec<u8>>,
    /// Those that may end a closing tag, as they hold a bar or a part of one.
    bars: Vec<u32>,
    /// Those that hold a whole one, or all of it but its beginning.
    tags: Vec<u32>,
    /// Those that open arrays and objects.
    openers: Vec<u32>,
    /// Those that end a tag and go on behind it.
    straddlers: Vec<u32>,
    /// Those that may end a name.
    quotes: Vec<u32>,
    /// For every byte of the tag that closes a value, those that can stand there.
    closers: Vec<Vec<u32>>,
    /// Those that may begin one more part of JSON, from outside and from inside of a string.
    growers: [Vec<u32>; 2],
}

impl DelicateTokens {
    pub(crate) fn new(tokenizer: &Tokenizer) -> DelicateTokens {
        let ids = 0..tokenizer.n_vocab() as u32;
        let words: Vec<Vec<u8>> = ids
            .clone()
            .map(|id| tokenizer.token_bytes(id).to_vec())
            .collect();
        let with = |is: &dyn Fn(&[u8]) -> bool| -> Vec<u32> {
            ids.clone().filter(|id| is(&words[*id as usize])).collect()
        };
        let closes = |from: Closing, word: &[u8]| {
            let mut closing = from;
            word.iter().any(|byte| match closing.read(*byte) {
                Read::Text(next) => {
                    closing = next;
                    false
                }
                Read::Closes | Read::Lookalike => true,
            })
        };
        DelicateTokens {
            bars: with(&|word| word.iter().any(|b| matches!(b, b'|' | 0xef | 0xbd | 0x9c))),
            tags: with(&|word| closes(Closing::Nowhere, word) || closes(Closing::Less, word)),
            openers: with(&|word| word.iter().any(|b| matches!(b, b'[' | b'{'))),
            straddlers: with(&|word| {
                let end = word.iter().position(|b| *b == b'>');
                end.is_some_and(|at| at + 1 < word.len())
            }),
            quotes: with(&|word| word.contains(&b'"')),
            closers: (0..VALUE_CLOSE.len())
                .map(|at| with(&|word| may_follow(&VALUE_CLOSE.as_bytes()[at..], word)))
                .collect(),
            growers: [
                with(&|word| word.iter().any(|b| matches!(b, b'[' | b'{' | b','))),
                with(&|word| {
                    let quote = word.iter().position(|b| *b == b'"');
                    quote.is_some_and(|at| word[at..].contains(&b','))
                }),
            ],
            words,
        }
    }

    pub(crate) fn bytes(&self, token: u32) -> &[u8] {
        &self.words[token as usize]
    }

    /// Tokens that can stand at this byte of the tag that closes a value.
    fn closers(&self, at: usize) -> &[u32] {
        self.closers.get(at).map_or(&[], Vec::as_slice)
    }

    /// Tokens that may begin one more part of JSON.
    pub(crate) fn growers(&self, in_string: bool) -> &[u32] {
        &self.growers[usize::from(in_string)]
    }
}

/// Reads a block of calls and says what may come next.
pub struct CallReader {
    matcher: Matcher,
    tokens: Arc<DelicateTokens>,
    trie: TokEnv,
    begun: bool,
    place: Place,
    /// The names of the call's parameters.
    names: Names,
    /// What opens the inputs of tools that have grammars of their own, and what reads those.
    inputs: Vec<(Vec<u8>, Matcher)>,
    /// The markup since the last value, as far as it can open such an input.
    markup: Vec<u8>,
    /// The input that is being read.
    input: Option<InputReader>,
    /// What was last said to be admitted.
    admitted: Option<Arc<TokenSet>>,
}

impl CallReader {
    /// Whether a block has begun.
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// Tokens that may come next; `None` when any may, as the block is over.
    ///
    /// # Errors
    /// Why the grammar can no longer be followed: what it needs exceeds a limit.
    pub fn admitted(&mut self) -> Result<Option<Arc<TokenSet>>, String> {
        if self.matcher.is_stopped() && !self.matcher.is_error() {
            return Ok(None);
        }
        if let Some(set) = &self.admitted {
            return Ok(Some(Arc::clone(set)));
        }
        let mask = self.matcher.compute_mask().map_err(first_line)?;
        let mut words = mask.as_slice().to_vec();
        let mut check = |tokens: &[u32]| {
            for &token in tokens {
                let (word, bit) = (token as usize / 32, 1 << (token % 32));
                if words[word] & bit != 0 {
                    let mut place = self.place.clone();
                    let mut bytes = self.tokens.words[token as usize].iter();
                    if !bytes.all(|byte| place.read(*byte)) {
                        words[word] &= !bit;
                    }
                }
            }
        };
        check(&self.tokens.tags);
        if self.place.is_near_closing() {
            check(&self.tokens.bars);
        }
        if self.place.is_deep() {
            check(&self.tokens.openers);
        }
        if matches!(self.place, Place::Tag(_)) && !self.inputs.is_empty() {
            // An input begins with a token.
            for &token in &self.tokens.straddlers {
                let (word, bit) = (token as usize / 32, 1 << (token % 32));
                if words[word] & bit != 0 && self.opens_within(self.tokens.bytes(token)) {
                    words[word] &= !bit;
                }
            }
        }
        if matches!(self.place, Place::Tag(_)) && !self.names.is_empty() {
            for &token in &self.tokens.quotes {
                let (word, bit) = (token as usize / 32, 1 << (token % 32));
                if words[word] & bit != 0 {
                    let mut names = self.names.clone();
                    let mut bytes = self.tokens.bytes(token).iter();
                    if !bytes.all(|byte| names.read(*byte)) {
                        words[word] &= !bit;
                    }
                }
            }
        }
        if let Some(input) = &mut self.input {
            input.narrow(&mut words, &self.tokens)?;
        }
        let set = TokenSet::from_words(words);
        if set.is_empty() {
            return Err("nothing can follow".to_owned());
        }
        let set = Arc::new(set);
        self.admitted = Some(Arc::clone(&set));
        Ok(Some(set))
    }

    /// Reads a token of the block. Whether it can be read; if not, nothing that follows can.
    pub fn push(&mut self, token: u32) -> bool {
        self.begun = true;
        self.admitted = None;
        let read = self.matcher.try_consume_tokens(&[token]);
        if !read.is_ok_and(|n| n == 1) {
            return false;
        }
        let tokens = Arc::clone(&self.tokens);
        let bytes = tokens.bytes(token);
        if let Some(input) = &mut self.input {
            let read = input.push(token, bytes);
            if input.is_over() {
                self.input = None;
            }
            return read && bytes.iter().all(|byte| self.place.read(*byte));
        }
        for (i, byte) in bytes.iter().enumerate() {
            let was_tag = matches!(self.place, Place::Tag(_));
            if !self.place.read(*byte) {
                return false;
            }
            if was_tag && !self.names.read(*byte) {
                return false;
            }
            if was_tag && !self.inputs.is_empty() {
                self.markup.push(*byte);
                self.open_input();
                if self.input.is_some() && i + 1 < bytes.len() {
                    return false;
                }
            }
        }
        true
    }

    /// Begins to read the input that the markup has just opened, if it has.
    fn open_input(&mut self) {
        if matches!(self.place, Place::Tag(_)) {
            if self.markup.len() > 2 * MAX_OPENING_BYTES {
                self.markup.drain(..MAX_OPENING_BYTES);
            }
            return;
        }
        let opened = self
            .inputs
            .iter()
            .find(|(open, _)| self.markup.ends_with(open));
        self.input = opened.map(|(_, matcher)| InputReader::new(matcher.deep_clone()));
        self.markup.clear();
    }

    /// Whether a token would open an input and be a part of it too.
    fn opens_within(&self, bytes: &[u8]) -> bool {
        let mut markup = self.markup.clone();
        let (_, inside) = bytes.split_last().unwrap_or((&0, &[]));
        inside.iter().any(|byte| {
            markup.push(*byte);
            self.inputs.iter().any(|(open, _)| markup.ends_with(open))
        })
    }

    /// Reads text of the block, such as what stands behind `<｜DSML｜` in the token that ends it.
    pub fn push_text(&mut self, text: &[u8]) -> bool {
        self.begun = true;
        let tokens = self.trie.tok_trie().greedy_tokenize(text);
        tokens.into_iter().all(|token| self.push(token))
    }
}

impl Schemas {
    /// A reader of the calls that a request may make, `None` when there are none, and a line for
    /// everything in the tools' schemas that is not enforced.
    ///
    /// # Errors
    /// A strict tool whose schema cannot be enforced, with the JSON pointer of the place.
    pub fn calls(
        &self,
        generation: &Generation,
    ) -> Result<(Option<CallReader>, Vec<String>), Failure> {
        let tools = rules::admitted(generation);
        if tools.is_empty() {
            return Ok((None, Vec::new()));
        }
        let mut warnings = Vec::new();
        let mut schemas: Vec<Value> = Vec::new();
        let mut inputs = Vec::new();
        for tool in &tools {
            schemas.push(self.bounded(tool, &mut warnings)?);
            if let Some(InputGrammar::Lark(grammar)) = &tool.input {
                match self.matcher(grammar) {
                    Ok(matcher) => inputs.push((input::opening(&tool.name), matcher)),
                    Err(reason) => {
                        let name = &tool.name;
                        warnings.push(format!(
                            "tools: the grammar of {name} is not enforced: {reason}"
                        ));
                    }
                }
            }
        }
        let rules =
            |tool: &Tool, schema: &Value| (ToolRules::new(tool, schema), !rules::is_strict(tool));
        let all = tools
            .iter()
            .zip(&schemas)
            .map(|(tool, schema)| rules(tool, schema));
        let all: Vec<(ToolRules, bool)> = all.collect();
        let matcher = match self.matcher(&grammar::write(&all)) {
            Ok(matcher) => matcher,
            // Which tool it is that cannot be enforced is found one by one.
            Err(_) => {
                let mut enforced = Vec::new();
                for (tool, schema) in tools.iter().zip(schemas) {
                    let mut alone = rules(tool, &schema);
                    let grammar = grammar::write(std::slice::from_ref(&alone));
                    if alone.0.input.is_some() && self.matcher(&grammar).is_err() {
                        alone.0.input = None;
                        let name = &tool.name;
                        warnings.push(format!("tools: the grammar of {name} is not enforced"));
                    }
                    match self.matcher(&grammar::write(std::slice::from_ref(&alone))) {
                        Ok(_) => enforced.push(alone),
                        Err(reason) => {
                            let schema = self.relax(tool, schema, &reason, &mut warnings)?;
                            enforced.push(rules(tool, &schema));
                        }
                    }
                }
                self.matcher(&grammar::write(&enforced)).map_err(|reason| {
                    refused(format!("tools: their schemas cannot be enforced: {reason}"))
                })?
            }
        };
        let mut told = HashSet::new();
        warnings.retain(|warning| told.insert(warning.clone()));
        let reader = CallReader {
            matcher,
            tokens: self.delicate(),
            trie: self.tok_env(),
            begun: false,
            place: Place::default(),
            names: Names::default(),
            inputs,
            markup: Vec::new(),
            input: None,
            admitted: None,
        };
        Ok((Some(reader), warnings))
    }

    /// A tool's schema without what would take too long to compile.
    fn bounded(&self, tool: &Tool, warnings: &mut Vec<String>) -> Result<Value, Failure> {
        let schema = tool.function["parameters"].clone();
        let more = rules::unenforced(&schema).next();
        if let Some(keyword) = more {
            let place = format!("/{keyword}");
            let reason = "only properties, required and additionalProperties are, for a whole tool";
            warnings.push(self.unenforced(tool, &place, reason)?);
        }
        let (bounded, places) = crate::schema::bounded(schema);
        for (place, reason) in places {
            warnings.push(self.unenforced(tool, &place, &reason)?);
        }
        for (place, reason) in self.unenforceable(&bounded).iter() {
            warnings.push(self.unenforced(tool, place, reason)?);
        }
        Ok(bounded)
    }

    /// A tool's schema without what cannot be enforced.
    fn relax(
        &self,
        tool: &Tool,
        schema: Value,
        reason: &str,
        warnings: &mut Vec<String>,
    ) -> Result<Value, Failure> {
        let (mut schema, places) = relaxed(self, schema, rules::is_strict(tool));
        for (place, reason) in &places {
            warnings.push(self.unenforced(tool, place, reason)?);
        }
        let is_enforced = |schema: &Value| {
            let rules = (ToolRules::new(tool, schema), true);
            self.matcher(&grammar::write(&[rules])).is_ok()
        };
        if places.is_empty() || !is_enforced(&schema) {
            warnings.push(self.unenforced(tool, "/properties", reason)?);
            if let Some(Value::Object(properties)) = schema.get_mut("properties") {
                for (_, property) in properties.iter_mut() {
                    *property = Value::Bool(true);
                }
            }
            if let Value::Object(members) = &mut schema {
                members.remove("additionalProperties");
            }
        }
        Ok(schema)
    }

    /// The line that says so, where that is enough.
    fn unenforced(&self, tool: &Tool, place: &str, reason: &str) -> Result<String, Failure> {
        let name = &tool.name;
        if rules::is_strict(tool) {
            return Err(refused(format!(
                "tools: what stands at {place} of the parameters of {name} cannot be enforced \
                 ({reason}); leave it out, or leave out strict to have it ignored."
            )));
        }
        Ok(format!(
            "tools: what stands at {place} of the parameters of {name} is not enforced"
        ))
    }
}

fn refused(message: String) -> Failure {
    Failure {
        kind: FailureKind::Unsupported,
        message,
        param: Some("tools".to_owned()),
    }
}
