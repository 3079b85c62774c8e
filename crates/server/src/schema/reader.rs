//! Content that follows a schema while it is written, and its way to the end.

use std::sync::Arc;

use ds4_engine::TokenSet;
use llguidance::toktrie::TokEnv;
use llguidance::{Matcher, TokenParser};

use super::first_line;
use crate::calls::DelicateTokens;

/// Most tokens of a way to the end that is looked for before a reply begins.
const MAX_CLOSING: usize = 2048;
/// Texts that lead to the end of JSON, the best first: outside of strings. A comma ends a number
/// behind which more must come, which a digit would not.
const CLOSERS: [&str; 10] = ["}", "]", ",", "null", "0", "false", "true", "\"", "1", "{"];
/// Of them, those that end a number.
const N_BEHIND_NUMBERS: usize = 3;
/// Texts that lead to the end of a string that follows a pattern, the best first: those that stand
/// between the parts of formats before those that parts are made of.
const STRING_CLOSERS: [&str; 10] = ["\"", "@", ":", "-", "/", ".", "_", " ", "a", "0"];
/// Ways to the end that are tried, all but the first by the fall of dice.
const MAX_WAYS: u64 = 6;
/// Tokens of one string or number on such a way, beyond which another is tried.
const MAX_SCALAR_TOKENS: usize = 64;

/// Work of looking for ways to the end before a reply begins: items of the parser, costs of the
/// lexer and nodes of the vocabulary's tree, of which a processor does some ten million in a second.
const WORK_BEFORE: u64 = 10_000_000;
/// The same for a token of the reply, whose engine serves others too.
const WORK_FOR_TOKEN: u64 = 500_000;
/// What a token on a way takes besides.
const WORK_OF_STEP: u64 = 500;

/// Says which tokens keep the content on its schema.
pub struct SchemaReader {
    matcher: Matcher,
    env: TokEnv,
    tokens: Arc<DelicateTokens>,
    begun: bool,
    scalar: Scalar,
    n_least: usize,
    /// A way to the end from where the content stood when it was found.
    way: Option<Vec<u32>>,
    /// Texts that the patterns of the schema match, as they stand in strings.
    examples: Vec<String>,
}

/// Whether the end of JSON text stands in a string or a number.
#[derive(Clone, Copy, Debug, Default)]
struct Scalar {
    in_string: bool,
    escaped: bool,
    in_number: bool,
}

impl Scalar {
    fn read(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match (self.in_string, self.escaped, byte) {
                (true, true, _) => self.escaped = false,
                (true, false, b'\\') => self.escaped = true,
                (_, _, b'"') => self.in_string = !self.in_string,
                _ => {}
            }
            self.in_number = !self.in_string && matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.');
        }
    }

    fn is_inside(self) -> bool {
        self.in_string || self.in_number
    }
}

/// What came of looking for a way to the end.
enum Way {
    /// It is there.
    Ends(Vec<u32>),
    /// It was lost in a string or a number: with other dice it may be found.
    Astray,
    /// It is too long, or took too much work.
    Over,
}

impl SchemaReader {
    pub(super) fn new(
        parser: TokenParser,
        env: TokEnv,
        tokens: Arc<DelicateTokens>,
        examples: Vec<String>,
    ) -> SchemaReader {
        let mut reader = SchemaReader {
            matcher: Matcher::new(Ok(parser)),
            env,
            tokens,
            begun: false,
            scalar: Scalar::default(),
            n_least: 0,
            way: None,
            examples,
        };
        reader.way = reader.closing();
        reader.n_least = reader.way.as_ref().map_or(0, Vec::len);
        reader
    }

    /// Tokens that some content takes, not many more than the shortest.
    pub fn n_least(&self) -> usize {
        self.n_least
    }

    /// Tokens that end the content, none where it may end; a short way, if not the shortest. `None`
    /// when none was found.
    pub fn closing(&self) -> Option<Vec<u32>> {
        self.find_way(MAX_CLOSING, WORK_BEFORE)
    }

    /// Tokens that end the content, when it must be ended with them now: of those that are left, no
    /// more than `n_spare` would be left over. Nothing is looked for while what was found still ends
    /// it in time.
    pub fn ending(&mut self, n_left: usize, n_spare: usize) -> Option<Vec<u32>> {
        let in_time = |way: &Vec<u32>| way.len() + n_spare < n_left;
        let known = self.way.take().filter(|way| self.ends_with(way));
        if known.as_ref().is_some_and(in_time) {
            self.way = known;
            return None;
        }
        let found = self.find_way(n_left, WORK_FOR_TOKEN);
        self.way = match (found, known) {
            (Some(found), Some(known)) if known.len() < found.len() => Some(known),
            (found, known) => found.or(known),
        };
        self.way.clone().filter(|way| !in_time(way))
    }

    /// Whether these tokens end the content.
    fn ends_with(&self, way: &[u32]) -> bool {
        let mut matcher = self.matcher.clone();
        let read = matcher.try_consume_tokens(way);
        read.is_ok_and(|n| n == way.len()) && matcher.is_accepting().unwrap_or(false)
    }

    /// A way to the end of at most so many tokens, that so much work finds.
    fn find_way(&self, most: usize, mut work: u64) -> Option<Vec<u32>> {
        for dice in 0..MAX_WAYS {
            match self.try_way(dice, most, &mut work) {
                Way::Ends(way) => return Some(way),
                Way::Astray => {}
                Way::Over => return None,
            }
        }
        None
    }

    /// One way to the end. A pattern has no shortest one that could be asked for, and what is said to
    /// be best may go round in a string or a number for ever.
    fn try_way(&self, way: u64, most: usize, work: &mut u64) -> Way {
        let trie = self.env.tok_trie();
        let mut matcher = self.matcher.clone();
        let mut scalar = self.scalar;
        let mut closing = Vec::new();
        let mut n_in_scalar = 0;
        let mut has_chosen = false;
        let mut dice = way.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let lost = |has_chosen: bool| match has_chosen {
            true => Way::Astray,
            false => Way::Over,
        };
        loop {
            match matcher.is_accepting() {
                Ok(true) => return Way::Ends(closing),
                Ok(false) if closing.len() < most && *work > 0 => {}
                _ => return Way::Over,
            }
            if n_in_scalar > MAX_SCALAR_TOKENS {
                return lost(has_chosen);
            }
            *work = work.saturating_sub(WORK_OF_STEP);
            let mut next = trie.greedy_tokenize(&matcher.compute_ff_bytes());
            if next.is_empty() {
                let Ok(mask) = matcher.compute_mask() else {
                    return lost(has_chosen);
                };
                let taken = matcher.last_step_stats().map_or(0, |step| {
                    step.all_items as u64 + step.lexer_cost + step.trie_nodes_walked as u64
                });
                *work = work.saturating_sub(taken);
                let is_admitted = |text: &&str| {
                    let token = trie.token_id(text.as_bytes());
                    token.filter(|token| mask.is_allowed(*token))
                };
                has_chosen |= scalar.is_inside();
                if scalar.in_string
                    && way == 0
                    && let Some(example) = self.example(&matcher, work)
                {
                    next = example;
                }
                let known = match (scalar.in_string, scalar.in_number, way) {
                    (true, _, 0) => STRING_CLOSERS.iter().find_map(is_admitted),
                    (true, _, _) => is_admitted(&"\""),
                    (false, true, 1..) => CLOSERS[..N_BEHIND_NUMBERS].iter().find_map(is_admitted),
                    (false, _, _) => CLOSERS.iter().find_map(is_admitted),
                };
                let eos = trie.eos_token();
                let any = || {
                    dice ^= dice << 13;
                    dice ^= dice >> 7;
                    dice ^= dice << 17;
                    let mut all = mask.iter().filter(|token| *token != eos);
                    if way == 0 {
                        return all.next();
                    }
                    let is_plain = |token: &u32| {
                        let bytes = self.tokens.bytes(*token);
                        bytes.len() == 1 && bytes[0].is_ascii_graphic()
                    };
                    let plain: Vec<u32> = mask.iter().filter(is_plain).collect();
                    let at = dice.checked_rem(plain.len() as u64);
                    let one = at.and_then(|at| plain.get(at as usize).copied());
                    one.or_else(|| all.next())
                };
                if next.is_empty() {
                    match known.or_else(any) {
                        Some(token) => next.push(token),
                        None => return lost(has_chosen),
                    }
                }
            }
            if matcher.consume_tokens(&next).is_err() {
                return lost(has_chosen);
            }
            for token in &next {
                scalar.read(self.tokens.bytes(*token));
            }
            n_in_scalar = match scalar.is_inside() {
                true => n_in_scalar + next.len(),
                false => 0,
            };
            closing.extend(next);
        }
    }

    /// The end of a text that a pattern matches, and of the string with it, where one leads there:
    /// what the pattern asks for may be too rare for dice.
    fn example(&self, matcher: &Matcher, work: &mut u64) -> Option<Vec<u32>> {
        let trie = self.env.tok_trie();
        let n_bytes = self.examples.iter().map(String::len).max().unwrap_or(0);
        for n in 0..=n_bytes {
            for example in &self.examples {
                let end = example
                    .len()
                    .checked_sub(n)
                    .and_then(|at| example.get(at..));
                let Some(end) = end else { continue };
                if *work == 0 {
                    return None;
                }
                *work = work.saturating_sub(WORK_OF_STEP);
                let tokens = trie.greedy_tokenize(format!("{end}\"").as_bytes());
                let read = matcher.clone().try_consume_tokens(&tokens);
                if read.is_ok_and(|n| n == tokens.len()) {
                    return Some(tokens);
                }
            }
        }
        None
    }

    /// Whether content was read.
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// Tokens that may come next, the end-of-sentence token where the content may end.
    ///
    /// # Errors
    /// Why the schema can no longer be followed: what was read does not follow it, or what it needs
    /// exceeds a limit. It is the same from then on.
    ///
    /// Where it `ends_soon`, those that begin more than must be there are left out.
    pub fn allowed(&mut self, ends_soon: bool) -> Result<TokenSet, String> {
        let mask = self.matcher.compute_mask_or_eos().map_err(first_line)?;
        if mask.is_zero() {
            return Err("nothing can follow".to_owned());
        }
        let mut words = mask.as_slice().to_vec();
        if ends_soon {
            for &token in self.tokens.growers(self.scalar.in_string) {
                words[token as usize / 32] &= !(1 << (token % 32));
            }
            if words.iter().all(|word| *word == 0) {
                // They must be there.
                words = mask.as_slice().to_vec();
            }
        }
        Ok(TokenSet::from_words(words))
    }

    /// Reads a token of the content.
    pub fn push(&mut self, token: u32) {
        self.begun = true;
        self.scalar.read(self.tokens.bytes(token));
        // Behind other tokens it may still lead to the end.
        if let Some(way) = &mut self.way
            && way.first() == Some(&token)
        {
            way.remove(0);
        }
        // A token that was not allowed is an error of what comes next; `allowed` says so.
        let _ = self.matcher.consume_token(token);
    }
}

#[cfg(test)]
mod tests {
    use ds4_conformance::speaking_model;
    use ds4_text::Tokenizer;
    use serde_json::{Value, json};

    use super::*;
    use crate::generation::OutputSchema;
    use crate::schema::Schemas;

    fn reader(schema: Value) -> SchemaReader {
        let (tokens, types) = speaking_model::vocabulary();
        let merges: [&str; 0] = [];
        let tokenizer = Tokenizer::from_gguf_parts("gpt2", "joyai-llm", tokens, &types, merges);
        let schemas = Schemas::new(&tokenizer.expect("a tokenizer")).expect("a vocabulary");
        let wanted = OutputSchema {
            schema,
            strict: true,
            place: "schema".to_owned(),
        };
        schemas.compile(&wanted).expect("it can be enforced").0
    }

    #[test]
    fn a_way_to_the_end_is_kept_until_the_content_leaves_it_and_said_when_it_is_time() {
        let schema = json!({"type": "object", "additionalProperties": false,
            "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}},
            "required": ["a", "b"]});
        let mut reader = reader(schema);
        let way = reader.closing().expect("a way");
        assert_eq!(reader.n_least(), way.len());
        let n_spare = 3;
        for (at, token) in way.iter().enumerate() {
            let rest = way[at..].to_vec();
            assert_eq!(reader.ending(rest.len() + n_spare + 1, n_spare), None);
            assert_eq!(reader.way.as_ref(), Some(&rest));
            let now = reader.ending(rest.len() + n_spare, n_spare);
            assert_eq!(now, Some(rest));
            reader.push(*token);
        }
        assert_eq!(reader.ending(n_spare, n_spare), Some(Vec::new()));
        let allowed = reader.allowed(false).expect("it may end");
        assert!(allowed.contains(reader.env.tok_trie().eos_token()));
    }

    #[test]
    fn a_way_that_is_longer_than_what_is_left_is_not_gone() {
        let schema = json!({"type": "array", "minItems": 5000, "items": {"type": "boolean"}});
        let mut reader = reader(schema);
        assert_eq!(reader.n_least(), 0);
        let mut work = WORK_FOR_TOKEN;
        for left in [0, 1, 50] {
            assert_eq!(reader.ending(left, 3), None);
            let way = reader.try_way(0, left, &mut work);
            assert!(matches!(way, Way::Over), "{left}");
        }
        // Looking for it took no more steps than there are tokens left.
        assert!(work > WORK_FOR_TOKEN / 2, "{work}");
        let mut none = 0;
        assert!(matches!(reader.try_way(0, 5000, &mut none), Way::Over));
    }

    #[test]
    fn a_string_that_needs_what_is_rare_is_ended_by_what_its_pattern_asks_for() {
        let schema = json!({"type": "object", "additionalProperties": false,
            "properties": {"a": {"type": "string", "pattern": "xq\"[0-9]z"}, "b": {"type": "null"}},
            "required": ["a", "b"]});
        for written in ["", "{\"a\": \"ab", "{\"a\": \"xq", "{\"a\": \"xq\\\"7"] {
            let mut reader = reader(schema.clone());
            for token in reader.env.tok_trie().greedy_tokenize(written.as_bytes()) {
                reader.push(token);
            }
            let way = reader.closing().expect("a way");
            let closed = reader.env.tok_trie().decode_raw(&way);
            let text = [written.as_bytes(), &closed].concat();
            let value: Value = serde_json::from_slice(&text).expect("JSON");
            let a = value["a"].as_str().expect("a string");
            let at = a.find("xq\"").expect("it is there") + 3;
            assert!(a[at + 1..].starts_with('z'), "{value}");
        }
    }

    #[test]
    fn a_number_that_may_go_on_for_ever_is_ended_by_the_dice() {
        let mut reader = reader(json!({"type": "number", "multipleOf": 0.000_000_7}));
        for digit in ["1", "2", "3"] {
            let token = reader.env.tok_trie().token_id(digit.as_bytes());
            reader.push(token.expect("a digit is a token"));
        }
        let way = reader.closing().expect("a way");
        assert!(way.len() <= MAX_SCALAR_TOKENS + 1, "{}", way.len());
        assert!(reader.ends_with(&way));
    }
}
