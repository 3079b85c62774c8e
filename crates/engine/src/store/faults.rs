//! What the writer does when the volume fails.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use ds4_model::{BackendError, CacheRounding, Geometry, LayerKind, SlotContents, StoredRows};

use super::volume::{LocalVolume, Volume};
use super::*;

/// A volume that fails in the way that `errno` says; 0 is well.
struct Failing {
    errno: Arc<AtomicU32>,
    local: LocalVolume,
}

/// Stands for a volume with no space left but for a reserve.
const NEARLY_FULL: u32 = 9999;

/// EROFS.
const READ_ONLY: u32 = 30;

/// Stands for a bug.
const BUG: u32 = 9998;

impl Volume for Failing {
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        match self.errno.load(Ordering::SeqCst) {
            0 | NEARLY_FULL => self.local.write(path, bytes),
            BUG => panic!("a bug in the writer"),
            errno => Err(io::Error::from_raw_os_error(errno as i32)),
        }
    }

    fn space(&self, _dir: &Path) -> Option<(u64, u64)> {
        match self.errno.load(Ordering::SeqCst) {
            NEARLY_FULL => Some((1 << 20, 1 << 40)),
            _ => Some((1 << 40, 1 << 41)),
        }
    }

    fn takes_files(&self, _dir: &Path) -> bool {
        self.errno.load(Ordering::SeqCst) != READ_ONLY
    }
}

/// Rows of zeros.
struct Zeros(Geometry);

impl RowSource for Zeros {
    fn read_groups(&mut self, groups: &[crate::Group]) -> Result<Vec<StoredRows>, BackendError> {
        let g = &self.0;
        let contents = SlotContents::new(g, CacheRounding::Official);
        let zeros = |(layer, kind, range): &crate::Group| {
            let (element, width) = contents.element_and_width(g.layers[*layer], *kind);
            StoredRows {
                element,
                width,
                first: range.start,
                bytes: vec![0; range.len() * width * element.n_bytes()],
            }
        };
        Ok(groups.iter().map(zeros).collect())
    }
}

/// A small model.
fn model() -> (Geometry, SlotLayout, CompatKey) {
    let mut geometry = Geometry::flash();
    geometry.layers = vec![LayerKind::Csa];
    geometry.head_dim = 16;
    geometry.rope_dim = 4;
    geometry.index_dim = 16;
    let layout = SlotLayout::new(&geometry, CacheRounding::Official).with_block_tokens(16);
    let key = CompatKey([7; 32]);
    (geometry, layout, key)
}

#[test]
fn a_writer_that_panics_loses_one_file_and_holds_up_nobody() {
    let (geometry, layout, key) = model();
    let dir = tempfile::tempdir().unwrap();
    let errno = Arc::new(AtomicU32::new(0));
    let volume = Failing {
        errno: Arc::clone(&errno),
        local: LocalVolume::default(),
    };
    let options = StoreOptions {
        min_tokens: 1,
        ..StoreOptions::default()
    };
    let store = Store::open_on(dir.path(), options, key, layout, Box::new(volume)).expect("opens");
    let save = |first: u32| {
        let tokens: Vec<u32> = (first..first + 10).collect();
        let save = SaveOptions {
            reason: Reason::Anchor,
            text_keys: &[],
            wait: true,
        };
        let saved = store.save(&tokens, &mut Zeros(geometry.clone()), &save);
        store.flush();
        saved.expect("readable").id.expect("queued")
    };
    errno.store(BUG, Ordering::SeqCst);
    let lost = save(0);
    assert_eq!(store.take_notices(), [Notice::Failed]);
    assert_eq!(store.take_dropped(), [lost]);
    assert_eq!(store.usage().n_queued_bytes, 0);
    errno.store(0, Ordering::SeqCst);
    save(100);
    assert_eq!(store.usage().n_points, 1);
    assert_eq!(store.take_dropped(), []);
}

#[test]
fn a_volume_that_takes_no_more_pauses_writing_and_nothing_else() {
    static SECONDS: AtomicU32 = AtomicU32::new(0);
    fn clock() -> SystemTime {
        let seconds = u64::from(SECONDS.load(Ordering::SeqCst));
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_750_000_000 + seconds)
    }
    let (geometry, layout, key) = model();
    let dir = tempfile::tempdir().unwrap();
    let errno = Arc::new(AtomicU32::new(0));
    let volume = Failing {
        errno: Arc::clone(&errno),
        local: LocalVolume::default(),
    };
    let options = StoreOptions {
        min_tokens: 1,
        now: clock,
        ..StoreOptions::default()
    };
    let store = Store::open_on(dir.path(), options, key, layout, Box::new(volume)).expect("opens");
    let save = |first: u32, reason| {
        let tokens: Vec<u32> = (first..first + 20).collect();
        let save = SaveOptions {
            reason,
            text_keys: &[],
            wait: true,
        };
        let saved = store
            .save(&tokens, &mut Zeros(geometry.clone()), &save)
            .expect("readable");
        store.flush();
        saved.point
    };
    assert_eq!(save(0, Reason::Anchor), PointSaved::Queued);
    assert_eq!(store.usage().n_points, 1);

    // ENOSPC, EDQUOT, EROFS pause at once, and so does a volume near its end;
    // EIO after three failures.
    let causes = [(28, 1), (122, 1), (30, 1), (NEARLY_FULL, 1), (5, 3)];
    for (n, (code, n_saves)) in causes.into_iter().enumerate() {
        errno.store(code, Ordering::SeqCst);
        for i in 0..n_saves {
            let first = 1000 * (n as u32 + 1) + 100 * i;
            assert_eq!(
                save(first, Reason::Anchor),
                PointSaved::Queued,
                "errno {code}"
            );
        }
        let notices = store.take_notices();
        assert!(
            matches!(notices[..], [Notice::Paused { .. }]),
            "errno {code}: {notices:?}"
        );
        assert_eq!(
            save(50_000, Reason::Shutdown),
            PointSaved::Paused,
            "errno {code}"
        );
        assert_eq!(store.take_notices(), [], "told once");
        // Reading goes on, unless what was stored had to make room.
        let prompt: Vec<u32> = (0..21).collect();
        for candidate in store.find(&prompt, None) {
            store.load(&candidate).expect("reading goes on");
        }
        errno.store(0, Ordering::SeqCst);
        SECONDS.fetch_add(PAUSE.as_secs() as u32 + 1, Ordering::SeqCst);
        let first = 20_000 + 1000 * n as u32;
        assert_eq!(
            save(first, Reason::Anchor),
            PointSaved::Queued,
            "writing resumes"
        );
        let prompt: Vec<u32> = (first..first + 21).collect();
        assert_eq!(store.find(&prompt, None).len(), 1, "errno {code}");
    }
}

#[test]
fn a_folder_that_takes_no_files_is_read_and_stays_as_it_is() {
    let (geometry, layout, key) = model();
    let dir = tempfile::tempdir().unwrap();
    let errno = Arc::new(AtomicU32::new(0));
    let open = |errno: &Arc<AtomicU32>| {
        let volume = Failing {
            errno: Arc::clone(errno),
            local: LocalVolume::default(),
        };
        let options = StoreOptions {
            min_tokens: 1,
            ..StoreOptions::default()
        };
        Store::open_on(dir.path(), options, key, layout.clone(), Box::new(volume))
    };
    let save = |store: &Store, first: u32| {
        let tokens: Vec<u32> = (first..first + 20).collect();
        let save = SaveOptions {
            reason: Reason::Anchor,
            text_keys: &[],
            wait: true,
        };
        let saved = store.save(&tokens, &mut Zeros(geometry.clone()), &save);
        store.flush();
        saved.expect("readable").point
    };
    let mut store = open(&errno).expect("opens");
    assert_eq!(save(&store, 0), PointSaved::Queued);
    let mut log = store
        .open_turn_log(TurnLogOptions::default())
        .expect("a log");
    log.append(1, &[b"call"], b"turn").expect("taken");
    drop(log);
    drop(store);
    let files = || {
        let mut files: Vec<_> = super::volume::list_deep(dir.path())
            .expect("a folder")
            .into_iter()
            .map(|file| (file.path, file.n_bytes, file.modified))
            .collect();
        files.sort();
        files
    };
    let before = files();

    errno.store(READ_ONLY, Ordering::SeqCst);
    store = open(&errno).expect("opens");
    assert!(store.is_read_only());
    assert_eq!(store.take_notices(), [Notice::ReadOnly]);
    let prompt: Vec<u32> = (0..21).collect();
    let found = store.find(&prompt, None);
    assert_eq!(store.load(&found[0]).expect("it is there").tokens.len(), 20);
    assert_eq!(save(&store, 500), PointSaved::Paused);
    drop(store);
    assert_eq!(files(), before);
}
