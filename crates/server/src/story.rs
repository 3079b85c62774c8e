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
    let n_shared = reuse.n_shared;
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
            "; the disk has states of other weights or another tokenizer only".to_owned()
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
