//! Predicting a text: negative log-likelihood, and divergence from another model.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use ds4_engine::Request;
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

use super::distance::{Distance, Kept, Store};
use super::scoring::{self, Scored};
use super::{log_probabilities, plot};
use crate::args::EvalArgs;
use crate::commands::logits::read_ids;
use crate::console::Console;
use crate::model::{name_of, open_engine, open_tokenizer};
use crate::options::EngineOptions;
use crate::prompt_input::read_text_file;
use crate::sums::{check_writable, write_whole};
use crate::units;

/// Parts of a piece whose values are kept apart, for the picture.
const N_PARTS: usize = 32;

/// What a piece, or a part of one, came to.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    n: usize,
    nll: f64,
    kl: f64,
    agrees: usize,
}

impl Sums {
    fn add(&mut self, other: &Sums) {
        self.n += other.n;
        self.nll += other.nll;
        self.kl += other.kl;
        self.agrees += other.agrees;
    }
}

/// Runs the evaluation.
///
/// # Errors
/// The text, the model or a file of an earlier run cannot be used; Ctrl+C.
pub(super) fn run(
    path: &Path,
    args: &EvalArgs,
    console: &Console,
    out: &mut dyn Write,
) -> Result<()> {
    let options = EngineOptions::new(&args.engine)?;
    let (pieces, text) = pieces(path, args, &options)?;
    args.plot.as_deref().map_or(Ok(()), check_writable)?;
    // The last token of a piece predicts what is not there.
    let engine = open_engine(&options, console, |open| {
        scoring::plan(open, pieces.len(), args.chunk_tokens - 1);
    })?;
    let n_vocab = engine.geometry().n_vocab;
    let setting = format!(
        "# ds4 eval 1, text {text:016x}, model {}, kl {}",
        name_of(&options.model).display(),
        args.kl
            .as_ref()
            .map_or("none".to_owned(), |p| p.display().to_string())
    );
    let mut table = Table::open(args.out.as_deref(), &setting)?;
    let per_piece = (args.chunk_tokens - 1) as u64;
    let n_done = table.rows.len().min(pieces.len());
    let mut saved = match &args.save_logits {
        Some(path) => {
            let n_positions = n_done as u64 * per_piece;
            Some(Store::create(path, n_vocab, text, n_positions)?)
        }
        None => None,
    };
    let mut stored = match &args.kl {
        Some(path) => Some(Store::open(path, n_vocab, text)?),
        None => None,
    };
    let outside = |token: &&u32| **token as usize >= n_vocab;
    if let Some(token) = pieces[n_done..].iter().flatten().find(outside) {
        bail!("token id {token} is not in the vocabulary of {n_vocab}");
    }
    let prompts = pieces[n_done..].iter().map(|piece| Request {
        tokens: piece[..piece.len() - 1].to_vec(),
        scored_from: Some(0),
        use_cache: false,
        ..Request::default()
    });
    let mut under_way: BTreeMap<usize, Piece> = BTreeMap::new();
    console.progress(&progress(n_done, pieces.len()));
    scoring::run(engine, prompts, &mut |number, scored| {
        let number = n_done + number;
        let piece = under_way.entry(number).or_default();
        match scored {
            Scored::Row { at, logits } => {
                let log_p = log_probabilities(logits)?;
                let log_next = log_p[pieces[number][at + 1] as usize];
                let distance = match &mut stored {
                    Some(stored) => {
                        let position = number as u64 * per_piece + at as u64;
                        Some(stored.get(position, n_vocab)?.distance(&log_p))
                    }
                    None => None,
                };
                piece.add(at * N_PARTS / per_piece as usize, log_next, distance);
                if saved.is_some() {
                    piece.kept.push(Kept::of(&log_p));
                }
            }
            Scored::End => piece.is_whole = true,
        }
        // Pieces are written in order.
        while let Some(first) = under_way.first_entry().filter(|e| e.get().is_whole) {
            if *first.key() != table.rows.len() {
                break;
            }
            let piece = first.remove();
            if let Some(saved) = &mut saved {
                for kept in &piece.kept {
                    saved.put(kept)?;
                }
                saved.flush()?;
            }
            table.put(piece.parts)?;
            console.progress(&progress(table.rows.len(), pieces.len()));
        }
        Ok(())
    })?;
    console.end_progress();
    report(
        args,
        &name_of(&options.model),
        &table.rows[..pieces.len()],
        per_piece,
        n_done,
        out,
    )
}

/// The text in pieces, each beginning as every prompt does; and a number for the whole text and the
/// length of its pieces.
fn pieces(path: &Path, args: &EvalArgs, options: &EngineOptions) -> Result<(Vec<Vec<u32>>, u64)> {
    let is_ids = path.extension().is_some_and(|e| e == "json");
    let (tokens, bos) = if is_ids {
        (read_ids(path)?, None)
    } else {
        let tokenizer = open_tokenizer(&options.model)?;
        let tokens = tokenizer.encode_ordinary(&read_text_file(path)?);
        (tokens, Some(tokenizer.protocol().bos))
    };
    if args.chunk_tokens < 2 {
        bail!("--chunk-tokens 1: nothing is predicted in a piece of one token");
    }
    let numbers = std::iter::once(args.chunk_tokens as u32).chain(tokens.iter().copied());
    let bytes: Vec<u8> = numbers.flat_map(u32::to_le_bytes).collect();
    let text = xxh3_64(&bytes);
    let n_text = args.chunk_tokens - usize::from(bos.is_some());
    let mut pieces: Vec<Vec<u32>> = tokens
        .chunks_exact(n_text)
        .map(|chunk| bos.into_iter().chain(chunk.iter().copied()).collect())
        .collect();
    if pieces.is_empty() {
        bail!(
            "{} has {}, expected at least one piece of {n_text}: give a longer text or a smaller \
             --chunk-tokens",
            path.display(),
            units::plural(tokens.len(), "token")
        );
    }
    pieces.truncate(args.chunks.unwrap_or(usize::MAX));
    Ok((pieces, text))
}

fn progress(n_done: usize, n: usize) -> String {
    format!("{n_done} of {}", units::plural(n, "piece"))
}

/// A piece that is being computed.
struct Piece {
    parts: Vec<Sums>,
    /// What is to be stored of its positions.
    kept: Vec<Kept>,
    is_whole: bool,
}

impl Default for Piece {
    fn default() -> Piece {
        Piece {
            parts: vec![Sums::default(); N_PARTS],
            kept: Vec::new(),
            is_whole: false,
        }
    }
}

impl Piece {
    /// Counts a position: the log-probability of the token that follows.
    fn add(&mut self, part: usize, log_next: f32, distance: Option<Distance>) {
        let part = &mut self.parts[part];
        part.n += 1;
        part.nll -= f64::from(log_next);
        if let Some(distance) = distance {
            part.kl += distance.kl;
            part.agrees += usize::from(distance.agrees);
        }
    }
}

/// The pieces that are done, in a file where one is wanted: a line of CSV for every part of each.
struct Table {
    file: Option<fs::File>,
    name: String,
    rows: Vec<Vec<Sums>>,
}

const COLUMNS: &str = "piece,part,n,nll,kl,agrees";

impl Table {
    fn open(path: Option<&Path>, setting: &str) -> Result<Table> {
        let Some(path) = path else {
            return Ok(Table {
                file: None,
                name: String::new(),
                rows: Vec::new(),
            });
        };
        let name = || path.display().to_string();
        let head = format!("{setting}\n{COLUMNS}\n");
        let mut rows: Vec<Vec<Sums>> = Vec::new();
        let mut whole = head.len() as u64;
        if path.exists() {
            let text = fs::read_to_string(path).with_context(name)?;
            let Some(body) = text.strip_prefix(&head) else {
                bail!(
                    "{} is already there, of another text, model or comparison: delete it or name \
                     another",
                    path.display()
                );
            };
            let mut parts = Vec::new();
            let mut read = whole;
            for line in body.split_inclusive('\n') {
                read += line.len() as u64;
                let Some(sums) = line.ends_with('\n').then(|| parse(line)).flatten() else {
                    break;
                };
                parts.push(sums);
                if parts.len() == N_PARTS {
                    rows.push(std::mem::take(&mut parts));
                    whole = read;
                }
            }
        } else {
            fs::write(path, &head).with_context(|| format!("cannot write {}", path.display()))?;
        }
        let mut file = OpenOptions::new()
            .write(true)
            .open(path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        // A piece that was cut off is done again.
        file.set_len(whole)?;
        std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0))?;
        Ok(Table {
            file: Some(file),
            name: name(),
            rows,
        })
    }

    fn put(&mut self, parts: Vec<Sums>) -> Result<()> {
        if let Some(file) = &mut self.file {
            let mut text = String::new();
            for (i, s) in parts.iter().enumerate() {
                let piece = self.rows.len();
                text += &format!("{piece},{i},{},{},{},{}\n", s.n, s.nll, s.kl, s.agrees);
            }
            let written = file.write_all(text.as_bytes());
            written
                .and_then(|()| file.sync_data())
                .with_context(|| format!("cannot write {}", self.name))?;
        }
        self.rows.push(parts);
        Ok(())
    }
}

fn parse(line: &str) -> Option<Sums> {
    let fields: Vec<&str> = line.trim_end().split(',').collect();
    let [_, _, n, nll, kl, agrees] = fields[..] else {
        return None;
    };
    Some(Sums {
        n: n.parse().ok()?,
        nll: nll.parse().ok()?,
        kl: kl.parse().ok()?,
        agrees: agrees.parse().ok()?,
    })
}

fn report(
    args: &EvalArgs,
    model: &Path,
    rows: &[Vec<Sums>],
    per_piece: u64,
    n_kept: usize,
    out: &mut dyn Write,
) -> Result<()> {
    let mut total = Sums::default();
    let mut parts = vec![Sums::default(); N_PARTS];
    for row in rows {
        for (part, sums) in parts.iter_mut().zip(row) {
            part.add(sums);
            total.add(sums);
        }
    }
    let n = total.n.max(1) as f64;
    let per_piece_nll: Vec<f64> = rows
        .iter()
        .map(|row| {
            let mut sums = Sums::default();
            row.iter().for_each(|s| sums.add(s));
            sums.nll / sums.n.max(1) as f64
        })
        .collect();
    let mean = total.nll / n;
    let spread = per_piece_nll
        .iter()
        .map(|x| (x - mean).powi(2))
        .sum::<f64>();
    let error = match rows.len() {
        0 | 1 => None,
        k => Some((spread / (k as f64 * (k - 1) as f64)).sqrt()),
    };
    let compares = args.kl.is_some();
    if let Some(path) = &args.plot {
        let points: Vec<(f64, f64)> = parts
            .iter()
            .enumerate()
            .filter(|(_, s)| s.n > 0)
            .map(|(i, s)| {
                let middle = (i as f64 + 0.5) * per_piece as f64 / N_PARTS as f64;
                (middle, if compares { s.kl } else { s.nll } / s.n as f64)
            })
            .collect();
        let what = match compares {
            true => "mean KL divergence, nats",
            false => "mean negative log-likelihood, nats",
        };
        let title = model.file_name().unwrap_or_default().to_string_lossy();
        write_whole(path, plot::svg(&title, what, &points).as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let agreement = total.agrees as f64 / n;
    if args.json {
        let report = json!({
            "model": model.display().to_string(), "n_pieces": rows.len(), "n_kept": n_kept,
            "n_tokens": total.n, "nll": mean, "nll_error": error, "perplexity": mean.exp(),
            "kl": compares.then_some(total.kl / n),
            "top1_agreement": compares.then_some(agreement),
            "by_position": parts.iter().map(|s| {
                let n = s.n.max(1) as f64;
                json!({"n": s.n, "nll": s.nll / n, "kl": compares.then_some(s.kl / n)})
            }).collect::<Vec<Value>>(),
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
        return Ok(());
    }
    writeln!(out, "{}", model.display())?;
    writeln!(
        out,
        "  {} in {}",
        units::plural(total.n, "predicted token"),
        units::plural(rows.len(), "piece")
    )?;
    writeln!(
        out,
        "  negative log-likelihood {mean:.5}{} nats, perplexity {:.4}",
        error.map_or(String::new(), |e| format!(" +- {e:.5}")),
        mean.exp()
    )?;
    if compares {
        writeln!(
            out,
            "  KL divergence {:.6} nats, the same likeliest token at {:.2} %",
            total.kl / n,
            100.0 * agreement
        )?;
    }
    Ok(())
}
