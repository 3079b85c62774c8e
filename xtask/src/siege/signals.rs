//! Signals in the midst of work.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::load::process::Started;
use crate::load::wire::Wire;

use super::{Table, end};

pub(super) fn run(server: Started, table: &mut Table) -> Result<(), String> {
    let address = server.address;
    // A reply without an end, and bodies that are still being sent.
    let endless = json!({"messages": [{"role": "user", "content": "hi"}], "stream": true,
                         "ignore_eos": true, "max_tokens": 8000});
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut wire = Wire::open(address, Duration::from_secs(30)).map_err(|e| e.to_string())?;
        let body = endless.to_string();
        let sent = wire.send("POST", "/v1/chat/completions", "", body.as_bytes());
        sent.and_then(|()| wire.head()).map_err(|e| e.to_string())?;
        held.push(wire);
    }
    for _ in 0..8 {
        let mut wire = Wire::open(address, Duration::from_secs(30)).map_err(|e| e.to_string())?;
        let head = "POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 50000000\r\n\r\n{";
        wire.write(head.as_bytes()).map_err(|e| e.to_string())?;
        held.push(wire);
    }
    let begun = Instant::now();
    end(server, "signals", table)?;
    let took = begun.elapsed().as_secs_f64();
    table.row(
        "signals",
        "stopped within the grace of 5 s",
        took,
        10.0,
        "s",
    );
    Ok(())
}
