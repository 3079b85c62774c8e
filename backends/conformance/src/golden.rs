//! Golden models: small files with the logits of independent implementations.

use std::fs::File;
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::Once;

use ds4_formats::gguf::Gguf;
use npyz::NpyFile;

use crate::fixtures::Random;

/// A model, a prompt and the logits after every token of it.
pub struct Golden {
    /// Name for messages.
    pub name: String,
    /// The model.
    pub gguf: Gguf,
    /// The prompt.
    pub tokens: Vec<u32>,
    /// f32 `[n_tokens, n_vocab]`.
    pub logits: Vec<f32>,
}

/// Root of the project's tree.
pub fn project_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("the crate lies two folders below the root")
        .to_path_buf()
}

/// Says that a test passes without having tested `what`, and why. The test harness keeps what
/// `println!` writes to itself; this it does not.
pub fn skipped(what: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {what}");
}

/// The folder of shared data beside a checkout, when it is there.
pub fn shared() -> Option<PathBuf> {
    let found = project_root()
        .ancestors()
        .skip(1)
        .map(|dir| dir.join("shared"))
        .find(|dir| dir.join("data/golden/MANIFEST.md").is_file());
    static SAID: Once = Once::new();
    if found.is_none() {
        SAID.call_once(|| {
            skipped("what needs the shared data folder: it is not beside this checkout");
        });
    }
    found
}

/// The models of `testdata/forward`.
pub fn committed() -> Vec<Golden> {
    let folder = project_root().join("testdata/forward");
    let mut names: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.join("model.gguf").is_file())
        .collect();
    names.sort();
    assert!(!names.is_empty(), "no golden model in {}", folder.display());
    names
        .iter()
        .map(|dir| Golden {
            name: dir
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned(),
            gguf: Gguf::open(dir.join("model.gguf")).expect("a golden model opens"),
            tokens: ids(&dir.join("tokens.json")),
            logits: read_npy(&dir.join("logits.npy")),
        })
        .collect()
}

/// The small trained model of the program, quantised as large ones are, with a prompt of
/// any tokens and no logits: for what must hold whatever they are.
pub fn built_in() -> Golden {
    let path = project_root().join("models/ds4-small-q8_0.gguf");
    let gguf = Gguf::open(&path).expect("the built-in model opens");
    let n_vocab = gguf.spec("token_embd.weight").expect("an embedding").ne[1];
    let mut random = Random(11);
    Golden {
        name: "the built-in model".to_owned(),
        gguf,
        tokens: (0..150)
            .map(|_| random.below(n_vocab as usize) as u32)
            .collect(),
        logits: Vec::new(),
    }
}

/// The model of the shared data folder with the publisher's logits, unpacked to
/// a temporary file; `None` when the folder or `xz` is absent.
pub fn official() -> Option<Golden> {
    let folder = shared()?.join("data/golden");
    let packed = File::open(folder.join("tiny.gguf.xz")).ok()?;
    let unpacked = std::process::Command::new("xz")
        .arg("-dc")
        .stdin(packed)
        .output();
    let Ok(unpacked) = unpacked else {
        skipped("the publisher's logits: xz, which unpacks their model, is not installed");
        return None;
    };
    assert!(
        unpacked.status.success(),
        "xz could not unpack tiny.gguf.xz"
    );
    Some(Golden {
        name: "official".to_owned(),
        gguf: Gguf::parse(unpacked.stdout.into()).expect("the golden model parses"),
        tokens: ids(&folder.join("prompt.json")),
        logits: read_npy(&folder.join("official.npy")),
    })
}

fn ids(path: &Path) -> Vec<u32> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let json: serde_json::Value = serde_json::from_str(&text).expect("tokens are JSON");
    json["ids"]
        .as_array()
        .expect("tokens are under ids")
        .iter()
        .map(|id| id.as_u64().expect("an id") as u32)
        .collect()
}

/// All numbers of an `.npy` file of f32.
pub fn read_npy(path: &Path) -> Vec<f32> {
    let file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    NpyFile::new(BufReader::new(file))
        .and_then(|npy| npy.into_vec::<f32>())
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The arrays of an `.npz` file.
pub struct Npz {
    archive: zip::ZipArchive<File>,
}

impl Npz {
    /// Opens an archive whose entries are stored without compression.
    pub fn open(path: &Path) -> Npz {
        let file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Npz {
            archive: zip::ZipArchive::new(file).expect("an npz file is a zip archive"),
        }
    }

    fn read<T: npyz::Deserialize>(&mut self, name: &str) -> Vec<T> {
        let entry = self
            .archive
            .by_name(&format!("{name}.npy"))
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        NpyFile::new(BufReader::new(entry))
            .and_then(|npy| npy.into_vec())
            .unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// An array of f32.
    pub fn f32s(&mut self, name: &str) -> Vec<f32> {
        self.read(name)
    }

    /// An array of i32.
    pub fn i32s(&mut self, name: &str) -> Vec<i32> {
        self.read(name)
    }

    /// An array of i64.
    pub fn i64s(&mut self, name: &str) -> Vec<i64> {
        self.read(name)
    }
}
