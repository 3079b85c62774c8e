//! The folder seen from outside: permissions, listing, verification, clearing.

use std::fs;

use ds4_engine::store::{
    Reason, Store, StoreError, StoreOptions, TurnLogOptions, clear, gc, list, verify,
};

use crate::damage::files;
use crate::lookup::{lengths, save, save_as};
use crate::synthetic::{key_of, open, small_geometry, small_layout, small_options, tokens};

#[test]
fn a_listing_tells_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), small_options());
    save(&store, &tokens(1, 40));
    save_as(&store, &tokens(1, 50), Reason::TurnEnd, &[]);
    let listed = list(dir.path()).unwrap();
    assert_eq!(listed.len(), 1);
    let points: Vec<_> = listed[0]
        .points
        .iter()
        .map(|p| (p.n_tokens, p.n_blocks, p.reason))
        .collect();
    assert_eq!(points, [(50, 3, Reason::TurnEnd), (40, 2, Reason::Anchor)]);
    assert_eq!(listed[0].n_blocks, 3);
    let on_disk: u64 = files(dir.path())
        .iter()
        .map(|f| f.metadata().unwrap().len())
        .sum();
    let in_list: u64 = listed[0].points.iter().map(|p| p.n_bytes).sum();
    assert_eq!(in_list + listed[0].block_bytes, on_disk);
}

#[test]
fn verification_moves_away_what_is_damaged_and_collection_deletes_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), small_options());
    save(&store, &tokens(1, 40));
    save(&store, &tokens(2, 10));
    drop(store);
    assert_eq!(verify(dir.path()).unwrap().n_good, 4);
    let block = files(dir.path())
        .into_iter()
        .find(|f| f.extension().unwrap() == "blk")
        .unwrap();
    let mut bytes = fs::read(&block).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&block, bytes).unwrap();
    let verified = verify(dir.path()).unwrap();
    assert_eq!(
        (
            verified.n_good,
            verified.damaged.len(),
            verified.incomplete.len()
        ),
        (2, 1, 1)
    );
    assert_eq!(verified.damaged[0].0, block);
    assert_eq!(
        fs::read_dir(dir.path().join("quarantine")).unwrap().count(),
        1
    );
    let collected = gc(dir.path(), u64::MAX).unwrap();
    assert!(collected.freed_bytes > 0);
    assert_eq!(
        fs::read_dir(dir.path().join("quarantine")).unwrap().count(),
        0
    );
    let store = open(dir.path(), small_options());
    assert!(store.find(&tokens(1, 41), None).is_empty());
    assert_eq!(lengths(&store.find(&tokens(2, 11), None)), [10]);
}

#[test]
fn clearing_leaves_what_is_not_the_stores() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("kv");
    let store = open(&folder, small_options());
    save(&store, &tokens(1, 40));
    fs::write(folder.join("notes.txt"), "mine").unwrap();
    assert!(
        matches!(clear(&folder), Err(StoreError::Locked { .. })),
        "a server uses it"
    );
    drop(store);
    assert!(clear(&folder).unwrap() > 0);
    let left: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left, ["notes.txt"]);
    assert!(
        matches!(clear(&folder), Err(StoreError::Io { .. })),
        "no store is here any more"
    );
    assert!(matches!(list(dir.path()), Err(StoreError::Io { .. })));
}

#[test]
fn turns_lie_with_the_states_of_their_model() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("kv");
    let open_for = |weights| {
        let layout = small_layout();
        let key = key_of(&small_geometry(), &layout, weights);
        Store::open(&folder, small_options(), key, layout).unwrap()
    };
    let log_of = |store: &Store| store.open_turn_log(TurnLogOptions::default()).unwrap();
    let (one, other) = (open_for(1), open_for(2));
    log_of(&one).append(1, &[b"call"], b"said").unwrap();
    assert!(log_of(&one).get(b"call").unwrap().is_some());
    assert!(log_of(&other).get(b"call").unwrap().is_none());

    let logs: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path().join("turns.log"))
        .filter(|log| log.is_file())
        .collect();
    assert_eq!(logs.len(), 2);
    for log in &logs {
        fs::write(log, b"something else").unwrap();
    }
    assert!(
        log_of(&one).get(b"call").unwrap().is_none(),
        "a damaged log is an empty one"
    );
    assert_eq!(one.counts().n_quarantined, 1);
    log_of(&one).append(1, &[b"call"], b"said").unwrap();
    drop((one, other));
    clear(&folder).unwrap();
    assert!(
        !logs.iter().any(|log| log.exists()),
        "turns are cleared too"
    );
}

#[test]
fn a_folder_of_something_else_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("format"), "dsv4-cache 3\n").unwrap();
    let key = key_of(&small_geometry(), &small_layout(), 1);
    let opened = Store::open(dir.path(), small_options(), key, small_layout());
    assert!(matches!(opened, Err(StoreError::NotAStore { .. })));
}

#[test]
fn an_exclusive_store_is_alone() {
    let dir = tempfile::tempdir().unwrap();
    let key = key_of(&small_geometry(), &small_layout(), 1);
    let try_open = |exclusive| {
        let options = StoreOptions {
            exclusive,
            ..small_options()
        };
        Store::open(dir.path(), options, key, small_layout())
    };
    let shared = try_open(false).unwrap();
    let second = try_open(false).unwrap();
    assert!(matches!(try_open(true), Err(StoreError::Locked { .. })));
    drop((shared, second));
    let _alone = try_open(true).unwrap();
    assert!(matches!(try_open(false), Err(StoreError::Locked { .. })));
}

#[cfg(unix)]
#[test]
fn files_are_private_and_an_open_folder_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("a/kv");
    let store = open(&folder, small_options());
    save(&store, &tokens(1, 40));
    drop(store);
    let mut folders = vec![folder.clone()];
    while let Some(current) = folders.pop() {
        let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&current), 0o700, "{}", current.display());
        for entry in fs::read_dir(&current).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => assert_eq!(mode(&path), 0o600, "{}", path.display()),
            }
        }
    }
    for mode in [0o777, 0o770, 0o702] {
        fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).unwrap();
        let key = key_of(&small_geometry(), &small_layout(), 1);
        let opened = Store::open(&folder, small_options(), key, small_layout());
        assert!(
            matches!(opened, Err(StoreError::Insecure { .. })),
            "mode {mode:o}"
        );
    }
}
