//! What must hold for any bytes at all. The fuzz targets run these functions too.
#![allow(dead_code, reason = "every user runs its own part")]

use ds4_text::{
    EndReason, Event, MarkerText, ParsedCall, Prompt, Reply, ReplyParser, Start, Tokenizer,
    ToolSchemas, Utf8Stream, json, splitter,
};

/// Encodes and decodes the lossy text of `bytes`. The first two place a client range.
pub(crate) fn tokenizer(tokenizer: &Tokenizer, bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let mut end = 0;
    splitter::split(&text, |piece| {
        assert!(
            piece.start == end && piece.end > end,
            "{piece:?} after {end}"
        );
        end = piece.end;
    });
    assert_eq!(end, text.len(), "pieces cover the text");

    let place = |i: usize| {
        bytes
            .get(i)
            .map_or(0, |&b| usize::from(b) % (text.len() + 1))
    };
    let (start, end) = (place(0).min(place(1)), place(0).max(place(1)));
    let untrusted = Vec::from_iter((start < end).then_some(start..end));
    let prompt = Prompt {
        text,
        untrusted,
        marker_text: MarkerText::Defuse,
        ..Prompt::default()
    };
    let encodings = [
        tokenizer.encode(&prompt.text),
        tokenizer.encode_ordinary(&prompt.text),
        tokenizer.encode_prompt(&prompt),
    ];
    for ids in encodings {
        assert_eq!(tokenizer.decode(&ids).as_ref(), Ok(&prompt.text));
    }
    let _ = prompt.tail(start);
}

/// Reads the lossy text of `bytes` as a reply, whole and in chunks. The first byte says how.
pub(crate) fn reply(bytes: &[u8]) {
    let Some((&how, text)) = bytes.split_first() else {
        return;
    };
    let start = match how & 3 {
        0 => Start::Reasoning,
        1 => Start::Content,
        2 => Start::WithinReasoning,
        _ => Start::WithinContent,
    };
    let end = if how & 4 == 0 {
        EndReason::Stop
    } else {
        EndReason::Length
    };
    let tools = if how & 8 == 0 {
        tools()
    } else {
        ToolSchemas::default()
    };
    let whole = parse_chunks(start, &tools, [text], end);
    for n_bytes in [1, usize::from(how >> 4) + 2] {
        let chunked = parse_chunks(start, &tools, text.chunks(n_bytes), end);
        assert_eq!(chunked, whole, "in chunks of {n_bytes} bytes");
    }
    for call in whole.tool_calls.iter().filter(|call| call.complete) {
        let arguments = json::parse(&call.arguments);
        assert!(arguments.is_ok_and(|a| a.is_object()), "{}", call.arguments);
    }
}

fn tools() -> ToolSchemas {
    let schema = r#"{"properties": {"key": {"type": "string"}, "limit": {}}, "required": ["key"]}"#;
    let schema = json::parse(schema).expect("a schema");
    ["lookup", "a"]
        .map(|name| (name.to_owned(), schema.clone()))
        .into_iter()
        .collect()
}

/// The reply to a text that arrives in chunks of bytes, after checking that the events say the
/// same as the reply.
pub(crate) fn parse_chunks<'a>(
    start: Start,
    tools: &ToolSchemas,
    chunks: impl IntoIterator<Item = &'a [u8]>,
    end: EndReason,
) -> Reply {
    let mut parser = ReplyParser::new(start, tools.clone());
    let mut utf8 = Utf8Stream::default();
    let mut events = Vec::new();
    for chunk in chunks {
        events.extend(parser.push(&utf8.push(chunk)));
    }
    events.extend(parser.push(&utf8.finish()));
    let (last, reply) = parser.finish(end);
    events.extend(last);
    assert_eq!(told(&events), without_offset(&reply), "events {events:?}");
    reply
}

/// The reply that a client puts together from the events. What events do not tell is taken as
/// told: `implicit_think_end` is left false.
fn told(events: &[Event]) -> Reply {
    let mut reply = Reply::default();
    for event in events {
        match event {
            Event::ReasoningDelta(text) => reply.reasoning.push_str(text),
            Event::ContentDelta(text) => reply.content.push_str(text),
            Event::ToolStart { index, name } => {
                assert_eq!(
                    *index,
                    reply.tool_calls.len(),
                    "calls are numbered in order"
                );
                reply.tool_calls.push(ParsedCall {
                    name: name.clone(),
                    ..ParsedCall::default()
                });
            }
            Event::ToolArgsDelta { index, text } => {
                reply.tool_calls[*index].arguments.push_str(text)
            }
            Event::ToolEnd { index } => reply.tool_calls[*index].complete = true,
            Event::BlockDone => assert!(!reply.tool_calls.is_empty(), "a block has a call"),
            Event::Malformed { detail } => reply.malformed = Some(detail.clone()),
        }
    }
    reply
}

fn without_offset(reply: &Reply) -> Reply {
    Reply {
        implicit_think_end: false,
        block_start: None,
        ..reply.clone()
    }
}
