//! Numbers of a full-size conversation.

use std::time::{Duration, Instant};

use ds4_cpu::{CpuBackend, CpuOptions};
use ds4_engine::store::{
    Codec, PointSaved, Reason, SaveOptions, SlotLayout, Store, StoreOptions, decode_file,
};
use ds4_engine::{CacheRounding, Geometry, SAVE_INTERVAL};
use ds4_model::{Session, SessionShape};

use crate::damage::files;
use crate::synthetic::{Synthetic, key_of, tokens};

/// Bytes that the conversation may take.
const LIMIT_BYTES: u64 = 200 << 20;

#[test]
#[ignore = "writes 1.5 GB and takes a minute: cargo test --release -p ds4-engine --test store measure -- --ignored --nocapture"]
fn a_conversation_of_40960_tokens_takes_less_than_200_mib() {
    let geometry = Geometry::flash();
    let layout = SlotLayout::new(&geometry, CacheRounding::Official);
    let key = key_of(&geometry, &layout, 1);
    let prompt = tokens(1, 40_961);
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    // Whatever its turns do, the first prompt leaves an interval and an anchor.
    let begin = [(8192, Reason::Interval), (12_000, Reason::Anchor)];
    let turns = (1..20).map(|i| (11_700 + i * 1507, 12_000 + i * 1507));
    let turn = |(prompt_end, end)| [(prompt_end, Reason::TurnEnd), (end, Reason::TurnEnd)];
    let every_turn: Vec<(usize, Reason)> = turns.clone().flat_map(turn).collect();
    // What the scheduler writes: a turn after which somebody thinks for a while, here
    // every fifth, and one that ends 8,192 tokens after what was written last.
    let mut last = 12_000;
    let mut resting = Vec::new();
    for (i, (prompt_end, end)) in (1..).zip(turns) {
        if i % 5 == 0 || end - last >= SAVE_INTERVAL {
            resting.extend(turn((prompt_end, end)));
            last = end;
        }
    }
    for (name, codec, points) in [
        ("every turn", Codec::Zstd, &every_turn),
        ("as scheduled", Codec::None, &resting),
        ("as scheduled", Codec::Zstd, &resting),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions {
            codec,
            keep_free_bytes: 0,
            ..StoreOptions::default()
        };
        let store = Store::open(dir.path(), options, key, layout.clone()).unwrap();
        let mut rows = Synthetic::new(&geometry, 7);
        let end = [(40_960, Reason::Shutdown)];
        let points = begin.iter().chain(points).chain(&end).copied();
        let mut writing = Duration::ZERO;
        for (n, reason) in points {
            // The rows are made before the clock runs.
            let state = rows.state(n);
            let started = Instant::now();
            let save = SaveOptions {
                reason,
                text_keys: &[],
                wait: true,
            };
            let saved = store.save(&prompt[..n], &mut &state, &save).unwrap();
            assert_eq!(saved.point, PointSaved::Queued, "point at {n}");
            store.flush();
            writing += started.elapsed();
        }
        let (usage, counts) = (store.usage(), store.counts());
        let on_disk: u64 = files(dir.path())
            .iter()
            .map(|f| f.metadata().unwrap().len())
            .sum();
        assert_eq!(on_disk, usage.n_bytes);
        let started = Instant::now();
        let candidate = &store.find(&prompt, None)[0];
        let found = started.elapsed();
        let loaded = store.load(candidate).unwrap();
        let loading = started.elapsed() - found;
        assert_eq!(loaded.state, rows.state(40_960));
        println!(
            "{name}, {codec:?}: {:.1} MiB on disk in {} blocks and {} points; {:.1} MiB written at {:.0} MiB/s; find {:.2} ms; load {:.1} MiB in {:.0} ms",
            mib(on_disk),
            usage.n_blocks,
            usage.n_points,
            mib(counts.written_bytes),
            mib(counts.written_bytes) / writing.as_secs_f64(),
            found.as_secs_f64() * 1e3,
            mib(loaded.n_bytes),
            loading.as_secs_f64() * 1e3,
        );
        assert!(on_disk < LIMIT_BYTES, "{on_disk} bytes on disk");

        let block = files(dir.path())
            .into_iter()
            .find(|f| f.extension().unwrap() == "blk");
        let bytes = std::fs::read(block.unwrap()).unwrap();
        let started = Instant::now();
        let n_times = 20;
        for _ in 0..n_times {
            decode_file(&bytes, &layout).unwrap();
        }
        let rows_mib = mib((layout.block_bytes() * n_times) as u64);
        println!(
            "{codec:?}: a block of {:.2} MiB is checked and decoded at {:.0} MiB of rows a second on one thread",
            mib(bytes.len() as u64),
            rows_mib / started.elapsed().as_secs_f64(),
        );
    }
}

#[test]
#[ignore = "measures: cargo test --release -p ds4-engine --test store measure -- --ignored --nocapture"]
fn rates_of_the_codec() {
    use ds4_engine::RowKind;
    use ds4_engine::store::{Encoding, RowFormat, RowGrid};
    use ds4_model::ElementType;
    let mut source = Synthetic::new(&Geometry::flash(), 7);
    for (kind, width, grid) in [
        (
            RowKind::Compressed,
            512,
            RowGrid::Attention { rope_dim: 64 },
        ),
        (RowKind::Index, 128, RowGrid::Index),
    ] {
        let format = RowFormat {
            element: ElementType::Bf16,
            width,
            grid,
        };
        let rows = source.rows(2, kind, 0..4096).bytes;
        let mib = (rows.len() * 20) as f64 / f64::from(1 << 20);
        let mut encoded = Vec::new();
        let mut encoding = Encoding::Planes;
        let started = Instant::now();
        for _ in 0..20 {
            encoded.clear();
            encoding = format.encode(&rows, &mut encoded);
        }
        let encode = mib / started.elapsed().as_secs_f64();
        let mut decoded = vec![0; rows.len()];
        let started = Instant::now();
        for _ in 0..20 {
            assert!(format.decode(encoding, &encoded, &mut decoded));
        }
        let decode = mib / started.elapsed().as_secs_f64();
        assert_eq!(decoded, rows);
        println!(
            "{kind:?} as {encoding:?}: encoded and verified at {encode:.0} MiB/s, decoded at {decode:.0} MiB/s, of rows in memory, on one thread"
        );
    }
}

#[test]
#[ignore = "measures: cargo test --release -p ds4-engine --test store measure -- --ignored --nocapture"]
fn a_snapshot_and_a_copied_beginning_at_full_size() {
    let geometry = Geometry::flash();
    let shape = SessionShape::uniform(2, 16_384, 1);
    let mut backend = CpuBackend::new(&geometry, CpuOptions::default()).expect("a processor");
    let mut session = Session::open(&mut backend, shape).expect("room for two slots");
    let mut rows = Synthetic::new(&geometry, 7);
    for n in [12_000, 12_031, 12_032] {
        session
            .import(&mut backend, 0, &rows.state(n))
            .expect("it fits");
        let mut time = |what: &str, run: &mut dyn FnMut(&mut CpuBackend)| {
            run(&mut backend);
            let started = Instant::now();
            (0..10).for_each(|_| run(&mut backend));
            let ms = started.elapsed().as_secs_f64() * 100.0;
            println!("{what} at {n} tokens: {ms:.2} ms");
        };
        let mut taken = None;
        time("a snapshot", &mut |backend| {
            taken = Some(session.frontier(backend, 0).expect("readable"));
        });
        let taken = taken.expect("it was taken");
        println!(
            "its bytes: {:.2} MiB",
            taken.n_bytes() as f64 / f64::from(1 << 20)
        );
        time("a copy of the slot", &mut |backend| {
            session.fork_at(backend, &taken, 1).expect("it holds");
        });
        time("going back", &mut |backend| {
            session.restore(backend, 0, &taken).expect("it holds");
        });
    }
}
