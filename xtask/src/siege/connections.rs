//! Connections that are slow, and more of them than there is room for.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::load::process::Started;
use crate::load::wire::Wire;

use super::bodies::status;
use super::probe::watch;
use super::{Table, end};

/// More than the server has places for.
const N_SLOW: usize = 600;
/// How long they go on.
const LASTS: Duration = Duration::from_secs(10);

const CHAT: &str = "/v1/chat/completions";

/// A request of which the rest is to come.
fn begin(address: SocketAddr, number: usize) -> std::io::Result<Wire> {
    let mut wire = Wire::open(address, Duration::from_secs(1))?;
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: {address}\r\n");
    match number % 3 {
        0 => wire.write(format!("{head}content-length: 100000\r\n\r\n{{").as_bytes())?,
        1 => wire.write(head.as_bytes())?,
        _ => {}
    }
    Ok(wire)
}

pub(super) fn run(server: Started, table: &mut Table) -> Result<(), String> {
    let (address, pid) = (server.address, server.pid());
    let body = br#"{"messages":[{"role":"user","content":"hi"}],"max_tokens":4}"#;
    let mut slow: Vec<Wire> = (0..N_SLOW).flat_map(|i| begin(address, i)).collect();
    let (answers, watched) = watch(address, pid, || {
        let (begun, mut answers) = (Instant::now(), Vec::new());
        while begun.elapsed() < LASTS {
            // Every one says a byte more, and those that were closed come again.
            for (number, wire) in slow.iter_mut().enumerate() {
                let is_closed = wire.write(b" ").is_err();
                if is_closed && let Ok(again) = begin(address, number) {
                    *wire = again;
                }
            }
            let asked = Instant::now();
            let status = status(address, CHAT, body).unwrap_or(0);
            answers.push((status, asked.elapsed()));
            std::thread::sleep(Duration::from_millis(200));
        }
        answers
    });
    let statuses: Vec<u16> = answers.iter().map(|(status, _)| *status).collect();
    let longest = answers
        .iter()
        .map(|(_, took)| *took)
        .max()
        .unwrap_or_default();
    let n_answered = statuses.iter().filter(|status| **status == 200).count();
    println!(
        "beside {N_SLOW} slow connections, {n_answered} of {} were answered",
        statuses.len()
    );
    let missed = (statuses.len() - n_answered) as f64 / statuses.len().max(1) as f64;
    table.row("connections", "not answered", missed * 100.0, 5.0, "%");
    table.row(
        "connections",
        "longest answer",
        longest.as_secs_f64(),
        10.0,
        "s",
    );
    let (n, p99, _) = watched.health();
    table.row(
        "connections",
        format!("/health, p99 of {n}"),
        p99,
        2000.0,
        "ms",
    );
    drop(slow);
    end(server, "connections", table)
}
