//! What each column of each matrix is multiplied with while a model reads: the mean squares that an
//! importance matrix holds.

use ds4_cpu::{CpuBackend, CpuOptions};
use ds4_formats::gguf::Gguf;
use ds4_formats::imatrix::{Columns, Imatrix};
use ds4_model::{
    Backend, Batch, Geometry, LayerKind, Network, Observed, Observer, Outputs, Place, Routes,
    Session, SessionShape, StepError,
};

use crate::plan::{OpenError, OpenOptions};

/// A model that reads, watched.
pub struct Importance {
    backend: Observed<CpuBackend, Collector>,
    network: Network<<CpuBackend as Backend>::Weight>,
    session: Session<Observed<CpuBackend, Collector>>,
}

impl Importance {
    /// Opens a model on the CPU's kernels to read pieces of up to `n_tokens`; counts go on from
    /// those in `imatrix`.
    ///
    /// # Errors
    /// The file is not a model this engine runs.
    pub fn open(
        gguf: &Gguf,
        options: &OpenOptions,
        n_tokens: usize,
        imatrix: Imatrix,
    ) -> Result<Importance, OpenError> {
        let path = &options.model;
        let geometry =
            Geometry::from_metadata(gguf.metadata()).map_err(|source| OpenError::Geometry {
                path: path.clone(),
                source,
            })?;
        let cpu = CpuOptions {
            n_threads: options.n_threads,
            simd: options.simd,
        };
        let inner =
            CpuBackend::new(&geometry, cpu).map_err(|e| OpenError::Options(e.to_string()))?;
        let mut backend = Observed {
            inner,
            observer: Collector::new(geometry.clone(), imatrix),
        };
        let find = |name: &str| gguf.tensor(name);
        let network =
            Network::bind(&geometry, &mut backend, &find, &mut |_| {}).map_err(|source| {
                OpenError::Weights {
                    path: path.clone(),
                    source,
                }
            })?;
        let shape = SessionShape::uniform(1, n_tokens, n_tokens);
        let session = Session::open(&mut backend, shape)?;
        Ok(Importance {
            backend,
            network,
            session,
        })
    }

    /// Reads a piece of text from its beginning, and counts it as a chunk.
    ///
    /// # Errors
    /// A token is not in the vocabulary, or the piece is longer than was announced.
    pub fn read(&mut self, tokens: &[u32]) -> Result<(), StepError> {
        self.session.clear(0);
        let mut batch = Batch::new();
        batch.push(0, tokens, Outputs::All);
        self.backend.observer.begin(tokens.len());
        self.session
            .step(&mut self.backend, &self.network, &batch)?;
        self.backend.observer.imatrix.n_chunks += 1;
        Ok(())
    }

    /// What was counted.
    pub fn imatrix(&self) -> &Imatrix {
        &self.backend.observer.imatrix
    }
}

/// Where in [`ds4_model::forward`] the next op stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Attention,
    Experts,
    Head,
}

struct Collector {
    geometry: Geometry,
    imatrix: Imatrix,
    n_rows: usize,
    /// Sublayers begun in this step.
    n_entered: usize,
    part: Part,
    /// The window was stored, so that the next rotation is that of the attention's output.
    stored: bool,
    /// The normed input of the experts.
    x: Vec<f32>,
    /// Experts of each row.
    chosen: Vec<u32>,
}

impl Collector {
    fn new(geometry: Geometry, imatrix: Imatrix) -> Collector {
        Collector {
            geometry,
            imatrix,
            n_rows: 0,
            n_entered: 0,
            part: Part::Attention,
            stored: false,
            x: Vec::new(),
            chosen: Vec::new(),
        }
    }

    fn begin(&mut self, n_rows: usize) {
        self.n_rows = n_rows;
        self.n_entered = 0;
        self.stored = false;
    }

    fn layer(&self) -> usize {
        (self.n_entered - 1) / 2
    }

    /// The first rows of a buffer of f32.
    fn floats<B: Backend>(&self, backend: &mut B, buffer: &B::Buffer, width: usize) -> Vec<f32> {
        let words = words(backend, buffer, self.n_rows * width);
        words.into_iter().map(f32::from_bits).collect()
    }

    /// Adds rows of `width` to matrices of the current layer.
    fn add(&mut self, suffixes: &[&str], x: &[f32], width: usize) {
        let layer = self.layer();
        for suffix in suffixes {
            self.add_named(format!("blk.{layer}.{suffix}.weight"), x, width);
        }
    }

    fn add_named(&mut self, name: String, x: &[f32], width: usize) {
        let entries = &mut self.imatrix.entries;
        let columns = entries
            .entry(name)
            .or_insert_with(|| Columns::new(width, 1));
        for row in x.chunks_exact(width) {
            columns.add(0, row);
        }
    }

    /// Adds for each row and each of its experts; `row_of` says which part of `x` the expert was
    /// given.
    fn add_experts(
        &mut self,
        suffix: &str,
        x: &[f32],
        width: usize,
        row_of: fn(usize, usize) -> usize,
    ) {
        let name = format!("blk.{}.{suffix}.weight", self.layer());
        let (n_experts, n_used) = (self.geometry.n_experts, self.geometry.n_experts_used);
        let entries = &mut self.imatrix.entries;
        let columns = entries
            .entry(name)
            .or_insert_with(|| Columns::new(width, n_experts));
        for (i, expert) in self.chosen.iter().enumerate() {
            let row = row_of(i, n_used);
            columns.add(*expert as usize, &x[row * width..(row + 1) * width]);
        }
    }
}

/// The first `n` words of a buffer. The backend computes on this machine, whose reads do not fail.
fn words<B: Backend>(backend: &mut B, buffer: &B::Buffer, n: usize) -> Vec<u32> {
    let mut bytes = vec![0; n * 4];
    let at = Place { slot: 0, row: 0 };
    if backend.read(buffer, at, &mut bytes).is_err() {
        return vec![0; n];
    }
    let words = bytes.as_chunks::<4>().0;
    words.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

impl<B: Backend> Observer<B> for Collector {
    fn routed(&mut self, backend: &mut B, routes: &Routes<B::Buffer>) {
        let n = self.n_rows * self.geometry.n_experts_used;
        self.chosen = words(backend, &routes.experts, n);
        let x = std::mem::take(&mut self.x);
        let width = self.geometry.n_embd;
        self.add_experts("ffn_gate_exps", &x, width, |i, n_used| i / n_used);
        self.add_experts("ffn_up_exps", &x, width, |i, n_used| i / n_used);
        self.add(
            &["ffn_gate_inp", "ffn_gate_shexp", "ffn_up_shexp"],
            &x,
            width,
        );
    }

    fn after(&mut self, backend: &mut B, op: &'static str, out: Option<&B::Buffer>) {
        let Some(out) = out else { return };
        let g = &self.geometry;
        let (n_embd, q_rank, expert_dim) = (g.n_embd, g.q_rank, g.expert_dim);
        let group_dim = g.group_dim();
        let o_width = g.n_heads * g.head_dim;
        let u_width = g.n_out_groups * g.out_rank;
        let n_used = g.n_experts_used;
        match op {
            "hc_pre_norm" => {
                self.n_entered += 1;
                let x = self.floats(backend, out, n_embd);
                if self.n_entered % 2 == 1 {
                    self.part = Part::Attention;
                    self.stored = false;
                    let kind = self.geometry.layers[self.layer()];
                    self.add(&["attn_q_a", "attn_kv"], &x, n_embd);
                    if kind != LayerKind::Sliding {
                        let names = ["attn_compressor_kv", "attn_compressor_gate"];
                        self.add(&names, &x, n_embd);
                    }
                    if kind == LayerKind::Csa {
                        let names = [
                            "indexer_compressor_kv",
                            "indexer_compressor_gate",
                            "indexer.proj",
                        ];
                        self.add(&names, &x, n_embd);
                    }
                } else {
                    self.part = Part::Experts;
                    self.x = x;
                }
            }
            "rms_norm" if self.part == Part::Attention => {
                let x = self.floats(backend, out, q_rank);
                self.add(&["attn_q_b"], &x, q_rank);
                if self.geometry.layers[self.layer()] == LayerKind::Csa {
                    self.add(&["indexer.attn_q_b"], &x, q_rank);
                }
            }
            "hc_head" => self.part = Part::Head,
            "rms_norm" if self.part == Part::Head => {
                let x = self.floats(backend, out, n_embd);
                self.add_named("output.weight".to_owned(), &x, n_embd);
            }
            "store_window" => self.stored = true,
            "rope" if self.stored => {
                self.stored = false;
                // Every group of heads goes through rows of its own and through all columns.
                let x = self.floats(backend, out, o_width);
                self.add(&["attn_output_a"], &x, group_dim);
            }
            "matmul_grouped" => {
                let x = self.floats(backend, out, u_width);
                self.add(&["attn_output_b"], &x, u_width);
            }
            "experts_gate_up" => {
                let x = self.floats(backend, out, n_used * expert_dim);
                self.add_experts("ffn_down_exps", &x, expert_dim, |i, _| i);
            }
            "gate_up" => {
                let x = self.floats(backend, out, expert_dim);
                self.add(&["ffn_down_shexp"], &x, expert_dim);
            }
            _ => {}
        }
    }
}
