//! From the messages of an API to those that have a rendering.

use ds4_text::{Message, Role};
use serde_json::Value;

use crate::api::invalid;
use crate::generation::Failure;

/// Between texts that become one, except reasoning.
const TEXT_BREAK: &str = "\n\n";
/// Between pieces of reasoning that become one.
const REASONING_BREAK: &str = "\n";

/// Puts system texts, tools and neighbours where the renderer expects them.
///
/// # Errors
/// A conversation that leaves nothing to answer. `param` is the request's field.
pub(crate) fn normalise(
    messages: Vec<Message>,
    tools: Vec<Value>,
    response_format: Option<Value>,
    param: &str,
) -> Result<Vec<Message>, Failure> {
    let mut out: Vec<Message> = Vec::new();
    let mut head: Vec<String> = Vec::new();
    for message in messages {
        let is_head = out.is_empty();
        match (message.role, out.last_mut()) {
            (Role::System, _) if is_head => head.push(message.content),
            (Role::System, _) => out.push(Message::user(message.content)),
            (Role::Assistant, Some(last)) if last.role == Role::Assistant => {
                merge_turns(last, message);
            }
            (Role::LatestReminder, _) => {
                // Behind a user turn it would stand behind the marker that opens the reply.
                let is_before = |m: &Message| !is_user_turn(m);
                let at = out.iter().rposition(is_before).map_or(0, |i| i + 1);
                out.insert(at, message);
            }
            _ => out.push(message),
        }
    }
    if !out.iter().any(is_user_turn) {
        let message = format!("{param}: expected at least one user message or tool result.");
        return Err(invalid(param, message));
    }
    match out.last() {
        Some(last) if last.role == Role::LatestReminder => {
            let message = format!("{param}: expected a user message behind the latest_reminder.");
            return Err(invalid(param, message));
        }
        Some(last) if last.open_ended && !last.tool_calls.is_empty() => {
            let message = format!("{param}: expected the results of the last message's calls.");
            return Err(invalid(param, message));
        }
        _ => {}
    }
    if !head.is_empty() || !tools.is_empty() || response_format.is_some() {
        let system = Message {
            tools,
            response_format,
            ..Message::system(head.join(TEXT_BREAK))
        };
        out.insert(0, system);
    }
    Ok(out)
}

/// Whether a message is a part of a user turn.
fn is_user_turn(message: &Message) -> bool {
    matches!(message.role, Role::User | Role::Tool)
}

/// Makes one assistant turn of two. How it ends is the second one's matter.
fn merge_turns(turn: &mut Message, more: Message) {
    append(&mut turn.content, TEXT_BREAK, &more.content);
    if let Some(reasoning) = more.reasoning {
        let all = turn.reasoning.get_or_insert_default();
        append(all, REASONING_BREAK, &reasoning);
    }
    turn.tool_calls.extend(more.tool_calls);
    turn.task = more.task;
    turn.open_ended = more.open_ended;
}

fn append(text: &mut String, text_break: &str, more: &str) {
    if !text.is_empty() && !more.is_empty() {
        text.push_str(text_break);
    }
    text.push_str(more);
}

#[cfg(test)]
mod tests {
    use ds4_text::{Task, ToolCall};
    use serde_json::json;

    use super::*;

    /// Role and content of every message.
    fn outline(messages: Vec<Message>) -> Vec<(Role, String)> {
        let messages = normalise(messages, Vec::new(), None, "messages").expect("a conversation");
        messages.into_iter().map(|m| (m.role, m.content)).collect()
    }

    fn expected(pairs: &[(Role, &str)]) -> Vec<(Role, String)> {
        pairs.iter().map(|(r, t)| (*r, (*t).to_owned())).collect()
    }

    #[test]
    fn system_texts_are_the_head_or_a_part_of_the_user_turn_where_they_stand() {
        let found = outline(vec![
            Message::system("a"),
            Message::system("b"),
            Message::user("c"),
            Message::assistant("d"),
            Message::system("e"),
            Message::user("f"),
        ]);
        let user = Role::User;
        let pairs = [
            (Role::System, "a\n\nb"),
            (user, "c"),
            (Role::Assistant, "d"),
            (user, "e"),
            (user, "f"),
        ];
        assert_eq!(found, expected(&pairs));
    }

    #[test]
    fn tools_bring_an_empty_system_text() {
        let tools = vec![json!({"name": "book"})];
        let found = normalise(vec![Message::user("a")], tools.clone(), None, "messages").unwrap();
        assert_eq!(
            (found[0].role, found[0].content.as_str()),
            (Role::System, "")
        );
        assert_eq!(found[0].tools, tools);
    }

    #[test]
    fn a_reminder_stands_before_the_whole_user_turn() {
        let reminder = || Message::new(Role::LatestReminder, "today");
        for messages in [
            vec![
                Message::assistant("a"),
                reminder(),
                Message::tool("1", "b"),
                Message::user("c"),
            ],
            vec![
                Message::assistant("a"),
                Message::tool("1", "b"),
                reminder(),
                Message::user("c"),
            ],
            vec![
                Message::assistant("a"),
                Message::tool("1", "b"),
                Message::user("c"),
                reminder(),
            ],
        ] {
            let pairs = [
                (Role::Assistant, "a"),
                (Role::LatestReminder, "today"),
                (Role::Tool, "b"),
                (Role::User, "c"),
            ];
            assert_eq!(outline(messages), expected(&pairs));
        }
        assert_eq!(
            outline(vec![Message::user("c"), reminder()]),
            expected(&[(Role::LatestReminder, "today"), (Role::User, "c")]),
        );
    }

    #[test]
    fn two_assistant_messages_are_one_turn_that_ends_as_the_second_does() {
        let call = ToolCall {
            id: "1".to_owned(),
            ..ToolCall::default()
        };
        let first = Message {
            reasoning: Some("r".to_owned()),
            tool_calls: vec![call],
            ..Message::assistant("a")
        };
        let second = Message {
            reasoning: Some("s".to_owned()),
            task: Some(Task::Title),
            ..Message::assistant("b")
        };
        let found = normalise(
            vec![Message::user("u"), first, second],
            Vec::new(),
            None,
            "messages",
        )
        .unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[1].content, "a\n\nb");
        assert_eq!(found[1].reasoning.as_deref(), Some("r\ns"));
        assert_eq!(found[1].tool_calls.len(), 1);
        assert_eq!(found[1].task, Some(Task::Title));

        let open = Message {
            open_ended: true,
            ..Message::assistant("b")
        };
        let turns = vec![Message::user("u"), Message::assistant("a"), open];
        let found = normalise(turns, Vec::new(), None, "messages").unwrap();
        assert!(
            found[1].open_ended,
            "the merged turn is still to be continued"
        );
    }

    #[test]
    fn a_conversation_with_nothing_to_answer_is_refused() {
        let reminder = Message::new(Role::LatestReminder, "today");
        let open = Message {
            tool_calls: vec![ToolCall::default()],
            open_ended: true,
            ..Message::assistant("")
        };
        for messages in [
            vec![],
            vec![Message::system("a")],
            vec![Message::assistant("a")],
            vec![Message::user("u"), Message::assistant("a"), reminder],
            vec![Message::user("u"), open],
        ] {
            let refused = normalise(messages.clone(), Vec::new(), None, "messages");
            let failure = refused.expect_err(&format!("{messages:?}"));
            assert_eq!(failure.param.as_deref(), Some("messages"));
        }
    }
}
