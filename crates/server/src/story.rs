//! Why a prompt had to be computed: what a slot or the disk held instead, and where that differs.

use ds4_engine::Reuse;
use ds4_engine::store::NotStored;
use ds4_text::{Passage, Tokenizer};

use crate::prompt::TokenPrompt;

/// Where the cached tokens of a request came from.
pub(crate) fn source(n_cached: usize, reuse: Option<&Reuse>) -> &'static str {
    match reuse {
        Some(reuse) if reuse.n_loaded > 0 => "disk",
        Some(reuse) if n_cached > 0 && reuse.from != reuse.slot => "copy",
        _ if n_cached > 0 => "memory",
        _ => "none",
    }
}

/// Why the part of a prompt that was not cached had to be computed. Numbers and kinds of
/// messages only; no text of the prompt.
pub(crate) fn why(
    prompt: &TokenPrompt,
    tokenizer: &Tokenizer,
    n_cached: usize,
    reuse: &Reuse,
) -> String {
    let n_prompt = prompt.tokens.len();
    let n_new = n_prompt - n_cached;
    let from = reuse.from;
    if reuse.ignored {
        return format!("{n_new} new: the request asks not to use what is cached");
    }
    let on_disk = on_disk(prompt, tokenizer, n_cached, reuse.not_stored);
    let rendered = match prompt.n_rendered {
        0 => String::new(),
        1 => "; 1 reply in it is not a turn that this server remembers".to_owned(),
        n => format!("; {n} replies in it are not turns that this server remembers"),
    };
    if reuse.n_loaded > 0 {
        return format!("{n_new} new: goes on from disk at token {n_cached}{on_disk}{rendered}");
    }
    if reuse.n_held == 0 {
        return format!("{n_new} new: the slots are empty{on_disk}");
    }
    let copied = match source(n_cached, Some(reuse)) {
        "copy" => format!("; copied from slot {from}"),
        _ => String::new(),
    };
    // What is opened on the model's behalf is computed with the prompt and is no part of it.
    let n_shared = reuse.n_shared.min(n_prompt);
    let back = match n_shared.min(n_prompt - 1).saturating_sub(n_cached) {
        0 => String::new(),
        _ => format!("; goes back from token {n_shared} to {n_cached}, where its state was kept"),
    };
    if n_shared == n_prompt {
        format!("{n_new} new: slot {from} holds all of it{back}{copied}{on_disk}")
    } else if n_shared == reuse.n_held {
        format!("{n_new} new: goes on where slot {from} ends{back}{copied}")
    } else {
        let difference = difference(prompt, tokenizer, reuse);
        format!("{n_new} new: {difference}{back}{copied}{on_disk}{rendered}")
    }
}

/// How the prompt and the slot that is most like it part.
fn difference(prompt: &TokenPrompt, tokenizer: &Tokenizer, reuse: &Reuse) -> String {
    let at = reuse.n_shared;
    let slot = reuse.from;
    let protocol = tokenizer.protocol();
    let (own, held) = (prompt.tokens[at], reuse.held_next.first().copied());
    let place = place(prompt, tokenizer, at, 0);
    match held {
        Some(held) if own == protocol.think_open && held == protocol.think_close => {
            return format!("asks for thinking where slot {slot} holds none, at {place}");
        }
        Some(held) if own == protocol.think_close && held == protocol.think_open => {
            return format!("asks for no thinking where slot {slot} holds some, at {place}");
        }
        _ => {}
    }
    let bytes = |tokens: &[u32]| -> Vec<u8> {
        let all = tokens.iter().map(|token| tokenizer.token_bytes(*token));
        all.flatten().copied().collect()
    };
    let n_seen = reuse.held_next.len();
    let own = bytes(&prompt.tokens[at..prompt.tokens.len().min(at + n_seen)]);
    let held = bytes(&reuse.held_next);
    let n_same = own.iter().zip(&held).take_while(|(a, b)| a == b).count();
    if n_same == own.len().min(held.len()) {
        return format!("holds the same text in other tokens than slot {slot} at {place}");
    }
    let place = self::place(prompt, tokenizer, at, n_same);
    format!("differs from what slot {slot} holds at {place}")
}

/// Names the byte that lies `n_bytes` behind the beginning of a token.
fn place(prompt: &TokenPrompt, tokenizer: &Tokenizer, token: usize, n_bytes: usize) -> String {
    let before = &prompt.tokens[..token];
    let lengths = before.iter().map(|token| tokenizer.token_bytes(*token));
    let byte = lengths.map(<[u8]>::len).sum::<usize>() + n_bytes;
    let within = prompt.places.iter().rev().find(|place| place.byte <= byte);
    let message = match within {
        None => String::new(),
        Some(place) if place.passage == Passage::Head => ", before the messages".to_owned(),
        Some(place) => {
            let n_messages = prompt.places.iter().map(|p| p.message + 1).max();
            format!(
                ", in message {} of {} ({})",
                place.message + 1,
                n_messages.unwrap_or(0),
                name(place.passage)
            )
        }
    };
    format!("byte {byte} of the prompt{message}, token {token}")
}

fn name(passage: Passage) -> &'static str {
    match passage {
        Passage::Head => "head",
        Passage::System => "system text",
        Passage::Tools => "tool schemas",
        Passage::ResponseFormat => "response format",
        Passage::User => "user text",
        Passage::ToolResult => "tool result",
        Passage::Reminder => "reminder",
        Passage::Opening => "end, where the reply is asked for",
        Passage::Reply => "reply",
    }
}

/// Why the disk had no more, to be put behind what the slots had.
fn on_disk(
    prompt: &TokenPrompt,
    tokenizer: &Tokenizer,
    n_cached: usize,
    not_stored: Option<NotStored>,
) -> String {
    match not_stored {
        None => String::new(),
        Some(NotStored::NoPoint { n_same: 0 }) => "; the disk has nothing like it".to_owned(),
        Some(NotStored::NoPoint { n_same }) if n_same <= n_cached => {
            "; the disk has no more of it".to_owned()
        }
        Some(NotStored::NoPoint { n_same }) => format!(
            "; the disk has {n_same} of its tokens, and no state between there and token {n_cached}"
        ),
        Some(NotStored::Evicted { n_tokens }) => {
            format!("; its state on disk up to token {n_tokens} gave way to others")
        }
        Some(NotStored::OtherModel) => {
            "; the disk has states of other weights, another tokenizer or other kernels only"
                .to_owned()
        }
        Some(NotStored::FirstDifference { at }) if at < prompt.tokens.len() => {
            let place = place(prompt, tokenizer, at, 0);
            format!("; what is on disk differs at {place}")
        }
        Some(NotStored::FirstDifference { at }) => {
            format!("; what is on disk differs at token {at}")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ds4_conformance::speaking_model;
    use ds4_text::{Effort, Message, Mode, ToolCall};
    use serde_json::json;

    use super::*;
    use crate::generation::{Endpoint, Generation, PromptSource, Thinking};
    use crate::prompt::{PromptRules, Prompter};
    use crate::turns::Turns;

    fn prompter() -> Prompter {
        let (tokens, types) = speaking_model::vocabulary();
        let merges: [&str; 0] = [];
        let tokenizer = Tokenizer::from_gguf_parts("gpt2", "joyai-llm", tokens, &types, merges);
        Prompter::new(
            Arc::new(tokenizer.expect("a tokenizer")),
            Arc::new(Turns::new(100, 1 << 20)),
            PromptRules::default(),
            4096,
        )
    }

    fn conversation() -> Vec<Message> {
        let mut system = Message::system("Be kind.");
        system.tools = vec![json!({"name": "f", "parameters": {"type": "object"}})];
        let mut called = Message::assistant("Let me see.");
        let call = |id: &str| ToolCall {
            id: id.to_owned(),
            name: "f".to_owned(),
            arguments: format!("{{\"x\": \"{id}\"}}"),
        };
        called.tool_calls = vec![call("1"), call("2")];
        vec![
            system,
            Message::user("Look."),
            called,
            Message::tool("1", "one"),
            Message::tool("2", "two"),
            Message::assistant("There."),
            Message::user("Again."),
        ]
    }

    fn prompt(messages: Vec<Message>, mode: Mode) -> TokenPrompt {
        let generation = Generation {
            thinking: Thinking {
                mode,
                effort: Effort::Low,
                budget: None,
            },
            ..Generation::new(Endpoint::Chat, PromptSource::Messages(messages))
        };
        prompter().tokens(&generation).expect("a prompt")
    }

    /// What a slot 1 that holds these tokens is found to have of a prompt.
    fn found(prompt: &TokenPrompt, held: &[u32]) -> Reuse {
        let pairs = held.iter().zip(&prompt.tokens);
        let n_shared = pairs.take_while(|(a, b)| a == b).count();
        Reuse {
            slot: 1,
            from: 1,
            n_shared,
            n_cached: n_shared.min(prompt.tokens.len() - 1),
            n_held: held.len(),
            held_next: held[n_shared..].iter().copied().take(8).collect(),
            ..Reuse::default()
        }
    }

    fn story(prompt: &TokenPrompt, reuse: &Reuse) -> String {
        why(prompt, prompter().tokenizer(), reuse.n_cached, reuse)
    }

    #[test]
    fn a_difference_is_placed_at_its_byte_and_in_its_message() {
        let before = prompt(conversation(), Mode::Chat);
        let prompter = prompter();
        let text = |prompt: &TokenPrompt| prompter.tokenizer().decode(&prompt.tokens).unwrap();
        type Change = fn(&mut Vec<Message>);
        let changes: [(Change, &str); 9] = [
            (
                |m| m[0].content = "Be quick.".to_owned(),
                "1 of 7 (system text)",
            ),
            (
                |m| m[0].tools[0]["name"] = json!("g"),
                "1 of 7 (tool schemas)",
            ),
            (
                |m| m[0].response_format = Some(json!({"type": "object"})),
                "1 of 7 (response format)",
            ),
            (|m| m[1].content = "Book.".to_owned(), "2 of 7 (user text)"),
            (
                |m| m[2].content = "Let us see.".to_owned(),
                "3 of 7 (reply)",
            ),
            (
                |m| m[2].tool_calls[1].name = "g".to_owned(),
                "3 of 7 (reply)",
            ),
            (|m| m[3].content = "1".to_owned(), "4 of 7 (tool result)"),
            (|m| m[4].content = "2".to_owned(), "5 of 7 (tool result)"),
            (|m| m[6].content = "Again!".to_owned(), "7 of 7 (user text)"),
        ];
        for (change, expected) in changes {
            let mut messages = conversation();
            change(&mut messages);
            let after = prompt(messages, Mode::Chat);
            let (old, new) = (text(&before), text(&after));
            let same = old.bytes().zip(new.bytes()).take_while(|(a, b)| a == b);
            let byte = same.count();
            let told = story(&after, &found(&after, &before.tokens));
            assert!(
                told.contains(&format!(
                    "differs from what slot 1 holds at byte {byte} of the prompt, in message \
                     {expected}, token "
                )),
                "{expected}: {told}"
            );
            assert!(told.contains("2 replies in it are not turns"), "{told}");
        }
        let mut without = conversation();
        without.remove(0);
        let after = prompt(without, Mode::Chat);
        let told = story(&after, &found(&after, &before.tokens));
        assert!(
            told.contains("in message 1 of 6 (user text), token 1"),
            "{told}"
        );
    }

    #[test]
    fn a_character_is_compared_byte_by_byte_and_a_think_marker_as_what_it_means() {
        let thinks = prompt(conversation(), Mode::Thinking);
        let answers = prompt(conversation(), Mode::Chat);
        let last = thinks.tokens.len() - 1;
        let mut held = thinks.tokens.clone();
        held[last] = answers.tokens[answers.tokens.len() - 1];
        let told = story(&thinks, &found(&thinks, &held));
        assert!(
            told.contains("asks for thinking where slot 1 holds none, at byte ")
                && told.contains(&format!(
                    "in message 7 of 7 (end, where the reply is asked for), token {last}"
                )),
            "{told}"
        );
        let mut held = answers.tokens.clone();
        *held.last_mut().unwrap() = thinks.tokens[last];
        let told = story(&answers, &found(&answers, &held));
        assert!(
            told.contains("no thinking where slot 1 holds some"),
            "{told}"
        );

        let e = |text: &str| {
            let mut messages = conversation();
            messages[6].content = text.to_owned();
            prompt(messages, Mode::Chat)
        };
        let (before, after) = (e("é"), e("è"));
        let reuse = found(&after, &before.tokens);
        let told = story(&after, &reuse);
        let text = prompter().tokenizer().decode(&after.tokens).unwrap();
        let byte = text.find('è').expect("it") + 1;
        assert!(told.contains(&format!("at byte {byte} of")), "{told}");

        // Tokens that differ and whose text does not.
        let marker = answers.tokens[answers.tokens.len() - 1];
        let mut held = answers.tokens[..answers.tokens.len() - 1].to_vec();
        held.extend(prompter().tokenizer().encode_ordinary("</think>"));
        let told = story(&answers, &found(&answers, &held));
        assert!(
            told.contains("holds the same text in other tokens than slot 1 at byte "),
            "{marker}: {told}"
        );
    }

    #[test]
    fn every_other_reason_has_its_words() {
        let prompt = prompt(conversation(), Mode::Chat);
        let n = prompt.tokens.len();
        let base = |n_shared: usize, n_cached: usize, n_held: usize| Reuse {
            n_shared,
            n_cached,
            n_held,
            held_next: vec![prompt.tokens[1]; usize::from(n_shared < n_held)],
            ..Reuse::default()
        };
        let stored = |n_cached: usize, not_stored| Reuse {
            not_stored: Some(not_stored),
            ..base(n_cached, n_cached, n_cached)
        };
        let empty = |not_stored| stored(0, not_stored);
        for (reuse, source, expected) in [
            (base(0, 0, 0), "none", "the slots are empty"),
            (
                Reuse {
                    ignored: true,
                    ..Reuse::default()
                },
                "none",
                "asks not to use what is cached",
            ),
            (
                base(60, 60, 60),
                "memory",
                "60 new: goes on where slot 0 ends",
            ),
            (
                base(60, 50, 60),
                "memory",
                "goes back from token 60 to 50, where its state was kept",
            ),
            (
                base(n, n - 1, n + 20),
                "memory",
                "1 new: slot 0 holds all of it",
            ),
            (
                base(n, 40, n + 90),
                "memory",
                "holds all of it; goes back from token",
            ),
            (
                base(n + 9, n, n + 20),
                "memory",
                "0 new: slot 0 holds all of it",
            ),
            (
                Reuse {
                    from: 1,
                    ..base(n, n - 1, n + 1)
                },
                "copy",
                "slot 1 holds all of it; copied from slot 1",
            ),
            (
                Reuse {
                    n_loaded: 50,
                    ..stored(50, NotStored::NoPoint { n_same: 70 })
                },
                "disk",
                "goes on from disk at token 50; the disk has 70 of its tokens, and no state \
                 between there and token 50",
            ),
            (
                Reuse {
                    n_loaded: 50,
                    ..stored(50, NotStored::NoPoint { n_same: 50 })
                },
                "disk",
                "the disk has no more of it",
            ),
            (
                empty(NotStored::NoPoint { n_same: 0 }),
                "none",
                "the disk has nothing like it",
            ),
            (
                empty(NotStored::Evicted { n_tokens: 30 }),
                "none",
                "its state on disk up to token 30 gave way to others",
            ),
            (empty(NotStored::OtherModel), "none", "other weights"),
            (
                empty(NotStored::FirstDifference { at: 1 }),
                "none",
                "what is on disk differs at byte 29 of the prompt, in message 1 of 7 (system \
                 text), token 1",
            ),
        ] {
            let n_cached = reuse.n_cached;
            let told = why(&prompt, prompter().tokenizer(), n_cached, &reuse);
            let expected = expected.replace("60 new", &format!("{} new", n - 60));
            assert!(told.contains(&expected), "{expected}: {told}");
            assert_eq!(super::source(n_cached, Some(&reuse)), source, "{told}");
            assert!(
                told.starts_with(&format!("{} new: ", n - n_cached)),
                "{told}"
            );
        }
    }
}
