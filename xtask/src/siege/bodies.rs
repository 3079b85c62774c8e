//! Bodies that take much memory, or long, for what they say.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::load::process::Started;
use crate::load::wire::Wire;

use super::probe::watch;
use super::{PATIENCE, Table, end};

const MB: usize = 1_000_000;
/// Memory of a server beyond what it held before: four times the room for bodies, which holds their
/// text, what is read of it, the prompt that is rendered and its tokens.
const MAX_MORE_MIB: f64 = 1024.0;

/// A body of about so many bytes, of which `small` is repeated in the middle.
fn filled(n_bytes: usize, before: &str, small: &str, after: &str) -> Vec<u8> {
    let n = n_bytes.saturating_sub(before.len() + after.len()) / small.len();
    let mut body = String::with_capacity(n_bytes + small.len());
    body.push_str(before);
    for _ in 0..n {
        body.push_str(small);
    }
    body.push_str(after);
    body.into_bytes()
}

const HELLO: &str = r#""messages":[{"role":"user","content":"hi"}],"max_tokens":1"#;

/// Sends all at once; the statuses.
fn at_once(address: SocketAddr, path: &str, bodies: &[Vec<u8>]) -> Vec<u16> {
    std::thread::scope(|scope| {
        let senders: Vec<_> = bodies
            .iter()
            .map(|body| scope.spawn(move || status(address, path, body).unwrap_or(0)))
            .collect();
        let statuses = senders.into_iter().map(|sender| sender.join());
        statuses.map(Result::unwrap_or_default).collect()
    })
}

pub(super) fn status(address: SocketAddr, path: &str, body: &[u8]) -> std::io::Result<u16> {
    let mut wire = Wire::open(address, PATIENCE)?;
    // A server that has seen enough answers before it has read all.
    let _ = wire.send("POST", path, "connection: close\r\n", body);
    let mut head = wire.head()?;
    let _ = wire.body(&mut head);
    Ok(head.status)
}

pub(super) fn run(server: Started, table: &mut Table) -> Result<(), String> {
    let (address, pid) = (server.address, server.pid());
    let before = crate::load::process::holds(pid).map_or(0.0, |holds| holds.rss_mib);
    let max_mib = before + MAX_MORE_MIB;
    let chat = "/v1/chat/completions";
    let responses = "/v1/responses";

    // What a machine that others use shows of itself.
    let ((), rest) = watch(address, pid, || std::thread::sleep(Duration::from_secs(5)));
    let (n, p99, max) = rest.health();
    println!("without an attack: /health p99 of {n} {p99:.1} ms, longest {max:.1} ms");

    // (what, path, bodies, statuses)
    type Case = (&'static str, &'static str, Vec<Vec<u8>>, &'static [u16]);
    let numbers = |n| filled(n, &format!("{{{HELLO},\"ignored\":["), "1,", "1]}");
    let messages = |n| {
        let small = r#"{"role":"user","content":""},"#;
        filled(
            n,
            r#"{"messages":["#,
            small,
            r#"{"role":"user","content":"hi"}]}"#,
        )
    };
    let long = |n| {
        filled(
            n,
            r#"{"messages":[{"role":"user","content":""#,
            "word ",
            r#""}]}"#,
        )
    };
    let items = |n| {
        let small = r#"{"role":"user","content":""},"#;
        filled(
            n,
            r#"{"input":["#,
            small,
            r#"{"role":"user","content":"hi"}]}"#,
        )
    };
    let cases: [Case; 6] = [
        (
            "4 of 55 MB, ignored numbers",
            chat,
            vec![numbers(55 * MB); 4],
            &[200, 503],
        ),
        (
            "4 of 55 MB, empty messages",
            chat,
            vec![messages(55 * MB); 4],
            &[400, 503],
        ),
        (
            "4 of 55 MB, one long text",
            chat,
            vec![long(55 * MB); 4],
            &[400, 503],
        ),
        (
            "4 of 55 MB, empty items",
            responses,
            vec![items(55 * MB); 4],
            &[400, 503],
        ),
        (
            "2 of 60 MB to /tokenize",
            "/tokenize",
            vec![filled(60 * MB, r#"{"content":""#, "word ", r#""}"#); 2],
            &[400, 503],
        ),
        (
            "2 of 60 MB of ids to /detokenize",
            "/detokenize",
            vec![filled(60 * MB, r#"{"tokens":["#, "7,", "7]}"); 2],
            &[200, 400, 503],
        ),
    ];
    for (what, path, bodies, expected) in cases {
        let begun = Instant::now();
        let (statuses, watched) = watch(address, pid, || at_once(address, path, &bodies));
        println!("{what}: {statuses:?}");
        table.row(
            "bodies",
            what,
            begun.elapsed().as_secs_f64() - 2.0,
            60.0,
            "s",
        );
        table.expect(what, &statuses, expected);
        table.watched("bodies", &watched, max_mib);
    }

    let begun = Instant::now();
    let refused = status(address, chat, &long(60 * MB)).map_err(|e| e.to_string())?;
    table.row(
        "bodies",
        "60 MB of prompt is refused",
        begun.elapsed().as_secs_f64(),
        5.0,
        "s",
    );
    table.expect("60 MB of prompt", &[refused], &[400]);

    // What is kept of responses is counted in memory.
    let kept = filled(
        20 * MB,
        r#"{"input":"hi","max_output_tokens":1,"metadata":{"a":["#,
        "1,",
        "1]}}",
    );
    let said = filled(
        2 * MB,
        r#"{"input":"hi","max_output_tokens":1,"metadata":{"a":["#,
        "1,",
        "1]}}",
    );
    let (statuses, watched) = watch(address, pid, || {
        let mut statuses = Vec::new();
        for _ in 0..8 {
            statuses.extend(status(address, responses, &kept));
            statuses.extend(status(address, responses, &said));
        }
        statuses
    });
    println!("8 stored responses of 20 MB and 8 of 2 MB: {statuses:?}");
    table.expect("stored responses", &statuses, &[200, 400, 503]);
    table.watched("bodies", &watched, max_mib);
    end(server, "bodies", table)
}
