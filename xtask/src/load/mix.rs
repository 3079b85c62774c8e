//! What clients ask: four protocols, long and short, alone and in conversations, and nonsense.

use serde_json::{Value, json};

/// Most words of a conversation: with the vocabulary of the small model they fit in 8,192 tokens.
const MAX_WORDS: usize = 2500;
/// Words of the texts that conversations begin with and share.
const SHARED_WORDS: [usize; 4] = [30, 120, 600, 1500];
/// Questions whose answers are known from before the load.
pub(crate) const N_KNOWN: usize = 12;

const WORDS: [&str; 40] = [
    "the", "a", "of", "and", "to", "in", "is", "house", "river", "light", "seven", "stone",
    "bread", "water", "green", "small", "old", "road", "letter", "morning", "winter", "music",
    "table", "window", "garden", "paper", "number", "north", "story", "under", "over", "between",
    "seldom", "often", "quick", "slow", "ask", "tell", "find", "give",
];

/// SplitMix64.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn words(&mut self, n: usize) -> String {
        let words: Vec<&str> = (0..n).map(|_| WORDS[self.below(WORDS.len())]).collect();
        words.join(" ")
    }
}

/// An API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Chat,
    Completions,
    Messages,
    Responses,
}

impl Protocol {
    pub(crate) fn path(self) -> &'static str {
        match self {
            Protocol::Chat => "/v1/chat/completions",
            Protocol::Completions => "/v1/completions",
            Protocol::Messages => "/v1/messages",
            Protocol::Responses => "/v1/responses",
        }
    }

    /// The text of a whole answer, reasoning included; `None` if it is not one.
    pub(crate) fn text(self, answer: &Value) -> Option<String> {
        let texts = |items: &Value, names: &[&str]| -> Option<String> {
            let of = |item: &Value| {
                names
                    .iter()
                    .find_map(|n| item[n].as_str().map(str::to_owned))
            };
            Some(items.as_array()?.iter().filter_map(of).collect())
        };
        match self {
            Protocol::Chat => {
                let message = answer["choices"][0].get("message")?;
                let member = |name| message[name].as_str().unwrap_or_default();
                Some(format!(
                    "{}{}",
                    member("reasoning_content"),
                    member("content")
                ))
            }
            Protocol::Completions => Some(answer["choices"][0]["text"].as_str()?.to_owned()),
            Protocol::Messages => texts(&answer["content"], &["thinking", "text"]),
            Protocol::Responses => {
                let items = answer["output"].as_array()?;
                let parts = |item: &Value| {
                    let of = |name: &str| texts(&item[name], &["text"]).unwrap_or_default();
                    of("summary") + &of("content")
                };
                Some(items.iter().map(parts).collect())
            }
        }
    }

    /// The text of an event of a stream.
    pub(crate) fn delta(self, event: &Value) -> Option<&str> {
        match self {
            Protocol::Chat => {
                let delta = &event["choices"][0]["delta"];
                let text = delta["reasoning_content"].as_str();
                text.or(delta["content"].as_str())
            }
            Protocol::Completions => event["choices"][0]["text"].as_str(),
            Protocol::Messages => {
                let delta = &event["delta"];
                delta["thinking"].as_str().or(delta["text"].as_str())
            }
            Protocol::Responses => match event["type"].as_str()? {
                "response.reasoning_text.delta"
                | "response.reasoning_summary_text.delta"
                | "response.output_text.delta" => event["delta"].as_str(),
                _ => None,
            },
        }
        .filter(|text| !text.is_empty())
    }

    /// Whether the data of an event ends a stream, and ends it well.
    pub(crate) fn ends(self, data: &str, event: &Value) -> Option<bool> {
        if event.get("error").is_some_and(|error| !error.is_null()) {
            return Some(false);
        }
        match (self, event["type"].as_str()) {
            (Protocol::Chat | Protocol::Completions, _) => (data == "[DONE]").then_some(true),
            (Protocol::Messages, Some("message_stop")) => Some(true),
            (Protocol::Responses, Some("response.completed" | "response.incomplete")) => Some(true),
            (_, Some("error" | "response.failed")) => Some(false),
            _ => None,
        }
    }
}

/// When a client hangs up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaves {
    /// When it has its answer.
    AtTheEnd,
    /// This long after it has asked, in milliseconds.
    AfterAsking(u64),
    /// After the status line of a stream, which comes before the prompt is computed.
    AfterTheHead,
    /// After so many pieces of text.
    AfterTexts(usize),
}

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub(crate) protocol: Protocol,
    pub(crate) stream: bool,
    pub(crate) body: Value,
    pub(crate) leaves: Leaves,
}

/// What was said so far.
#[derive(Clone, Debug)]
pub(crate) struct Conversation {
    protocol: Protocol,
    system: String,
    turns: Vec<(String, Option<String>)>,
    n_words: usize,
}

impl Conversation {
    pub(crate) fn new(random: &mut Random) -> Conversation {
        let protocol = [
            Protocol::Chat,
            Protocol::Messages,
            Protocol::Responses,
            Protocol::Completions,
        ][random.below(7) / 2];
        let system = match random.below(8) {
            0 => {
                let n = 1 + random.below(200);
                random.words(n)
            }
            shared => {
                let which = shared % SHARED_WORDS.len();
                Random(which as u64).words(SHARED_WORDS[which])
            }
        };
        Conversation {
            protocol,
            n_words: system.split(' ').count(),
            system,
            turns: Vec::new(),
        }
    }

    /// The next request of the conversation; `None` when it is long enough.
    pub(crate) fn ask(&mut self, random: &mut Random) -> Option<Question> {
        let n_words = match random.below(12) {
            0 => 2000,
            1..=2 => 400,
            3..=5 => 80,
            _ => 8,
        };
        let is_over = self.n_words + n_words > MAX_WORDS || self.turns.len() >= 5;
        if is_over && !self.turns.is_empty() {
            return None;
        }
        let text = random.words(n_words.min(MAX_WORDS - self.n_words));
        self.n_words += n_words;
        self.turns.push((text, None));
        let stream = random.below(3) > 0;
        let leaves = match random.below(20) {
            0..=1 => Leaves::AfterAsking(random.below(2000) as u64),
            2 if stream => Leaves::AfterTheHead,
            3..=4 if stream => Leaves::AfterTexts(1 + random.below(10)),
            _ => Leaves::AtTheEnd,
        };
        let max_tokens = 8 << random.below(4);
        Some(Question {
            protocol: self.protocol,
            stream,
            body: self.body(stream, max_tokens),
            leaves,
        })
    }

    /// What the server said.
    pub(crate) fn hear(&mut self, text: String) {
        self.n_words += text.split(' ').count();
        if let Some((_, said)) = self.turns.last_mut() {
            *said = Some(text);
        }
    }

    fn body(&self, stream: bool, max_tokens: usize) -> Value {
        let mut messages = Vec::new();
        for (asked, said) in &self.turns {
            messages.push(json!({"role": "user", "content": asked}));
            if let Some(said) = said {
                messages.push(json!({"role": "assistant", "content": said}));
            }
        }
        let mut body = json!({"model": "m", "stream": stream, "temperature": 0});
        match self.protocol {
            Protocol::Chat => {
                messages.insert(0, json!({"role": "system", "content": self.system}));
                body["messages"] = messages.into();
                body["max_tokens"] = max_tokens.into();
            }
            Protocol::Messages => {
                body["system"] = self.system.as_str().into();
                body["messages"] = messages.into();
                body["max_tokens"] = max_tokens.into();
            }
            Protocol::Responses => {
                body["instructions"] = self.system.as_str().into();
                body["input"] = messages.into();
                body["max_output_tokens"] = max_tokens.into();
            }
            Protocol::Completions => {
                let mut prompt = self.system.clone();
                for (asked, said) in &self.turns {
                    prompt = format!("{prompt}\n{asked}\n{}", said.as_deref().unwrap_or_default());
                }
                body["prompt"] = prompt.into();
                body["max_tokens"] = max_tokens.into();
            }
        }
        body
    }
}

/// A question whose answer is always the same.
pub(crate) fn known(number: usize, stream: bool) -> Question {
    let mut random = Random(1000 + number as u64);
    let protocols = [
        Protocol::Chat,
        Protocol::Messages,
        Protocol::Responses,
        Protocol::Completions,
    ];
    let words = [5, 60, 300][number % 3];
    let conversation = Conversation {
        protocol: protocols[number % protocols.len()],
        system: Random(0).words(SHARED_WORDS[0]),
        turns: vec![(random.words(words), None)],
        n_words: 0,
    };
    Question {
        protocol: conversation.protocol,
        stream,
        body: conversation.body(stream, 48),
        leaves: Leaves::AtTheEnd,
    }
}

/// A request that no client should send, as it is written, and the statuses that answer it.
pub(crate) struct Nonsense {
    pub(crate) what: &'static str,
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    pub(crate) headers: &'static str,
    pub(crate) body: Vec<u8>,
    pub(crate) status: u16,
}

/// One of them.
pub(crate) fn nonsense(random: &mut Random) -> Nonsense {
    let chat = "/v1/chat/completions";
    let (what, method, path, headers, body, status) = match random.below(10) {
        0 => (
            "no JSON",
            "POST",
            chat,
            "",
            b"{\"messages\": [".to_vec(),
            400,
        ),
        1 => (
            "a wrong type",
            "POST",
            "/v1/messages",
            "",
            b"{\"messages\": 3}".to_vec(),
            400,
        ),
        2 => (
            "not UTF-8",
            "POST",
            "/v1/responses",
            "",
            b"{\"input\": \"\xff\"}".to_vec(),
            400,
        ),
        3 => (
            "an unknown role",
            "POST",
            chat,
            "",
            b"{\"messages\": [{\"role\": \"x\", \"content\": \"\"}]}".to_vec(),
            400,
        ),
        4 => (
            "an unknown path",
            "POST",
            "/v1/embeddings",
            "",
            b"{}".to_vec(),
            404,
        ),
        5 => (
            "a wrong method",
            "PUT",
            "/v1/messages",
            "",
            b"".to_vec(),
            405,
        ),
        6 => (
            "a foreign page",
            "POST",
            chat,
            "origin: http://evil.example\r\n",
            b"{}".to_vec(),
            403,
        ),
        7 => {
            let long = "seven ".repeat(40_000);
            let body = json!({"input": long}).to_string().into_bytes();
            (
                "a prompt beyond the context",
                "POST",
                "/v1/responses",
                "",
                body,
                400,
            )
        }
        8 => {
            let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
            (
                "deep JSON",
                "POST",
                "/v1/completions",
                "",
                deep.into_bytes(),
                400,
            )
        }
        _ => (
            "a body of 8 MiB of nothing",
            "POST",
            chat,
            "",
            vec![b' '; 8 << 20],
            400,
        ),
    };
    Nonsense {
        what,
        method,
        path,
        headers,
        body,
        status,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_found_in_answers_and_in_events() {
        for (protocol, answer, text) in [
            (
                Protocol::Chat,
                json!({"choices": [{"message": {"reasoning_content": "a", "content": "b"}}]}),
                "ab",
            ),
            (
                Protocol::Completions,
                json!({"choices": [{"text": "ab"}]}),
                "ab",
            ),
            (
                Protocol::Messages,
                json!({"content": [{"thinking": "a"}, {"text": "b"}]}),
                "ab",
            ),
            (
                Protocol::Responses,
                json!({"output": [{"summary": [{"text": "a"}]}, {"content": [{"text": "b"}]}]}),
                "ab",
            ),
        ] {
            assert_eq!(
                protocol.text(&answer).as_deref(),
                Some(text),
                "{protocol:?}"
            );
            assert_eq!(protocol.text(&json!({"error": {}})), None, "{protocol:?}");
            let error = json!({"type": "error", "error": {"message": "m"}});
            assert_eq!(protocol.ends("", &error), Some(false), "{protocol:?}");
            assert_eq!(
                protocol.ends("", &json!({"type": "x"})),
                None,
                "{protocol:?}"
            );
        }
        assert_eq!(Protocol::Chat.ends("[DONE]", &Value::Null), Some(true));
        let stop = json!({"type": "message_stop"});
        assert_eq!(Protocol::Messages.ends("", &stop), Some(true));
    }

    #[test]
    fn a_conversation_grows_and_ends() {
        let mut random = Random(7);
        let mut conversation = Conversation::new(&mut random);
        let mut n_turns = 0;
        while let Some(question) = conversation.ask(&mut random) {
            n_turns += 1;
            assert!(question.body.to_string().len() < MAX_WORDS * 20);
            conversation.hear("yes".to_owned());
        }
        assert!((1..=5).contains(&n_turns), "{n_turns}");
    }
}
