//! Fork and join on a fixed set of threads, in about a microsecond.
//!
//! A decode step is some hundreds of parallel regions of 10 to 500 µs each, so what counts is how
//! fast a region opens and closes. A region is a number of *tasks*, claimed one by one from a
//! shared counter by the calling thread and by every worker that arrives while the region is open.
//! The caller waits for the workers that entered, never for those that did not: a worker whose
//! core is taken by another process delays nobody.
//!
//! Idle workers spin for [`SPIN_US`], then give the core away between looks until [`IDLE_US`], and
//! then park. Waking a parked worker costs tens of microseconds, once per pause.
//!
//! All shared state is one word, changed by read-modify-write operations only, so that no
//! increment is ever lost:
//!
//! ```text
//! bit 63           32 31    30                 0
//!     [ epoch        | open | workers inside    ]
//! ```

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long an idle worker polls without giving its core away, in microseconds.
pub const SPIN_US: u64 = 30;
/// How long an idle worker polls at all before it parks, in microseconds.
pub const IDLE_US: u64 = 300;

const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;
const EPOCH: u64 = 1 << 32;

/// A value alone in its cache lines (two lines: adjacent-line prefetch pairs them).
#[repr(align(128))]
struct Alone<T>(T);

/// One region: `call(context, task, worker)` for every task below `n_tasks`.
#[derive(Clone, Copy)]
struct Region {
    call: unsafe fn(*const (), usize, usize),
    context: *const (),
    n_tasks: usize,
}

struct Shared {
    state: Alone<AtomicU64>,
    next: Alone<AtomicUsize>,
    /// Written by the caller while `state` is closed and nobody is inside, read by whoever entered.
    region: Alone<UnsafeCell<Region>>,
    parked: Box<[Alone<AtomicBool>]>,
    stop: AtomicBool,
    panicked: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: the only field that is not Sync by itself is `region`; it is written by the one caller
// (`Pool::run` takes `&mut self`) while no worker is inside, and read only by threads inside, who
// entered through an acquiring read-modify-write of `state` that follows the releasing one which
// opened the region.
unsafe impl Sync for Shared {}
// SAFETY: as above; the raw context pointer is only used while the closure it points to is alive.
unsafe impl Send for Shared {}

impl Shared {
    /// Claims and runs tasks until none are left. A panic is kept for the caller and ends the
    /// region early.
    fn work(&self, region: Region, worker: usize) {
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let task = self.next.0.fetch_add(1, Ordering::Relaxed);
                if task >= region.n_tasks {
                    break;
                }
                // SAFETY: `context` points to the closure of the region that is open; the caller
                // keeps it alive until every thread inside has left.
                unsafe { (region.call)(region.context, task, worker) };
            }
        }));
        if let Err(payload) = result {
            // Half the range, so that further claims cannot wrap around.
            self.next.0.store(usize::MAX / 2, Ordering::Relaxed);
            let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(payload);
            self.panicked.store(true, Ordering::Release);
        }
    }

    /// Waits until the epoch is no longer `seen`; returns the state, or `None` to stop.
    fn wait(&self, seen: u64, worker: usize) -> Option<u64> {
        let fresh = |order| {
            let state = self.state.0.load(order);
            (state / EPOCH != seen).then_some(state)
        };
        let start = Instant::now();
        let mut may_spin = true;
        loop {
            for _ in 0..64 {
                if let Some(state) = fresh(Ordering::Relaxed) {
                    return Some(state);
                }
                std::hint::spin_loop();
                if !may_spin {
                    break;
                }
            }
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            let idle = start.elapsed();
            if idle > Duration::from_micros(IDLE_US) {
                break;
            }
            if idle > Duration::from_micros(SPIN_US) {
                may_spin = false;
                std::thread::yield_now();
            }
        }
        loop {
            // Either this load sees the caller's new epoch, or the caller, which looks at `parked`
            // after it changed the epoch, sees the flag and unparks: both are sequentially
            // consistent.
            self.parked[worker].0.store(true, Ordering::SeqCst);
            let state = fresh(Ordering::SeqCst);
            let stop = self.stop.load(Ordering::SeqCst);
            if state.is_some() || stop {
                self.parked[worker].0.store(false, Ordering::Relaxed);
                return if stop { None } else { state };
            }
            std::thread::park();
        }
    }

    fn worker_main(&self, worker: usize) {
        let mut seen = 0;
        while let Some(state) = self.wait(seen, worker) {
            seen = state / EPOCH;
            if state & OPEN == 0 {
                continue;
            }
            let entered = self.state.0.fetch_add(1, Ordering::Acquire);
            seen = entered / EPOCH;
            if entered & OPEN != 0 {
                // SAFETY: we are inside an open region, so the caller does not write it.
                let region = unsafe { *self.region.0.get() };
                self.work(region, worker);
            }
            self.state.0.fetch_sub(1, Ordering::Release);
        }
    }
}

/// A fixed set of threads: the caller's and `n_threads - 1` workers.
///
/// ```
/// let mut pool = ds4_cpu::Pool::new(2);
/// let mut squares = [0usize; 10];
/// pool.for_chunks(&mut squares, 4, |start, chunk| {
///     for (i, x) in chunk.iter_mut().enumerate() {
///         *x = (start + i) * (start + i);
///     }
/// });
/// assert_eq!(squares[9], 81);
/// ```
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    threads: Vec<Thread>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("n_threads", &self.n_threads())
            .finish()
    }
}

/// Closes the region and waits for everyone inside, also when the caller's own share panics.
struct Close<'a>(&'a Shared);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        let state = &self.0.state.0;
        let mut inside = state.fetch_and(!OPEN, Ordering::AcqRel) & INSIDE;
        let mut turns = 0u32;
        while inside != 0 {
            turns += 1;
            if turns < 4096 {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
            inside = state.load(Ordering::Acquire) & INSIDE;
        }
    }
}

impl Pool {
    /// Starts `n_threads - 1` workers (none for 0 or 1). If the system refuses some of them the
    /// pool has fewer: see [`Pool::n_threads`].
    pub fn new(n_threads: usize) -> Pool {
        unsafe fn nothing(_: *const (), _: usize, _: usize) {}
        let n_workers = n_threads.saturating_sub(1).min(INSIDE as usize / 2);
        let shared = Arc::new(Shared {
            state: Alone(AtomicU64::new(0)),
            next: Alone(AtomicUsize::new(0)),
            region: Alone(UnsafeCell::new(Region {
                call: nothing,
                context: std::ptr::null(),
                n_tasks: 0,
            })),
            parked: (0..=n_workers)
                .map(|_| Alone(AtomicBool::new(false)))
                .collect(),
            stop: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let workers: Vec<_> = (1..=n_workers)
            .map_while(|worker| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("ds4-cpu-{worker}"))
                    .spawn(move || shared.worker_main(worker))
                    .ok()
            })
            .collect();
        let threads = workers.iter().map(|w| w.thread().clone()).collect();
        Pool {
            shared,
            workers,
            threads,
        }
    }

    /// Threads that work on a region, the caller included; at least 1.
    pub fn n_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `body(task, worker)` once for every task in `0..n_tasks` and returns when all are
    /// done. `worker` is below [`Pool::n_threads`] and no two calls with the same `worker` overlap;
    /// the caller is worker 0. Which worker runs a task is not determined.
    ///
    /// # Panics
    ///
    /// If a task panics: the first payload is resumed here, once no task runs any more. Tasks not
    /// yet claimed are skipped. The pool stays usable.
    pub fn run<F: Fn(usize, usize) + Sync>(&mut self, n_tasks: usize, body: F) {
        /// # Safety
        /// `context` points to a live `F`.
        unsafe fn call<F: Fn(usize, usize) + Sync>(context: *const (), task: usize, worker: usize) {
            // SAFETY: the caller's promise.
            unsafe { (*context.cast::<F>())(task, worker) }
        }
        if self.workers.is_empty() || n_tasks <= 1 {
            (0..n_tasks).for_each(|task| body(task, 0));
            return;
        }
        let shared = &*self.shared;
        let region = Region {
            call: call::<F>,
            context: std::ptr::from_ref(&body).cast(),
            n_tasks,
        };
        // SAFETY: `&mut self` makes this the only caller; the previous region is closed and empty,
        // and a worker that enters a closed one does not read it.
        unsafe { *shared.region.0.get() = region };
        shared.next.0.store(0, Ordering::Relaxed);
        {
            let _close = Close(shared);
            shared.state.0.fetch_add(EPOCH | OPEN, Ordering::SeqCst);
            for (worker, thread) in self.threads.iter().enumerate().take(n_tasks - 1) {
                let flag = &shared.parked[worker + 1].0;
                if flag.load(Ordering::SeqCst) {
                    flag.store(false, Ordering::Relaxed);
                    thread.unpark();
                }
            }
            shared.work(region, 0);
        }
        if shared.panicked.swap(false, Ordering::Acquire) {
            let payload = shared
                .panic
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            if let Some(payload) = payload {
                resume_unwind(payload);
            }
        }
    }

    /// [`Pool::run`] with a scratch value for each worker: `body(task, &mut scratch[worker])`.
    ///
    /// # Panics
    ///
    /// If there are fewer scratch values than threads, and as [`Pool::run`].
    pub fn run_with<S: Send, F>(&mut self, scratch: &mut [S], n_tasks: usize, body: F)
    where
        F: Fn(usize, &mut S) + Sync,
    {
        let n_threads = self.n_threads();
        assert!(
            scratch.len() >= n_threads,
            "{} scratch values for {n_threads} threads",
            scratch.len()
        );
        let scratch = Spread::new(scratch);
        self.run(n_tasks, |task, worker| {
            // SAFETY: `worker < n_threads`, and calls with the same worker do not overlap.
            let own = unsafe { scratch.slice(worker, 1) };
            body(task, &mut own[0]);
        });
    }

    /// Splits `values` into chunks of `chunk_len` (the last may be shorter) and runs
    /// `body(start, chunk)` for each, `start` being the index of the chunk's first value.
    ///
    /// # Panics
    ///
    /// If `chunk_len` is 0, and as [`Pool::run`].
    pub fn for_chunks<T: Send, F>(&mut self, values: &mut [T], chunk_len: usize, body: F)
    where
        F: Fn(usize, &mut [T]) + Sync,
    {
        assert!(chunk_len > 0, "chunks of no values");
        let len = values.len();
        let values = Spread::new(values);
        self.run(len.div_ceil(chunk_len), |task, _| {
            let start = task * chunk_len;
            // SAFETY: chunks of different tasks do not overlap, and each task runs once.
            body(start, unsafe {
                values.slice(start, chunk_len.min(len - start))
            });
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches every panic of a task, so it has none of its own to report.
            let _ = worker.join();
        }
    }
}

/// A mutable slice that several tasks write at different places.
#[derive(Debug)]
pub(crate) struct Spread<'a, T> {
    start: *mut T,
    len: usize,
    borrow: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: handing out parts is `unsafe` and asks for disjointness; a part is a `&mut [T]`, which
// may be sent to another thread when T may.
unsafe impl<T: Send> Sync for Spread<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Spread<'_, T> {}

impl<'a, T> Spread<'a, T> {
    pub(crate) fn new(values: &'a mut [T]) -> Self {
        Spread {
            start: values.as_mut_ptr(),
            len: values.len(),
            borrow: std::marker::PhantomData,
        }
    }

    /// Where the values begin.
    pub(crate) fn start(&self) -> *mut T {
        self.start
    }

    /// The `len` values from `start`.
    ///
    /// # Safety
    ///
    /// No two live parts overlap.
    ///
    /// # Panics
    ///
    /// If the part ends after the slice.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(
            start <= self.len && len <= self.len - start,
            "part {start}..+{len} of {} values",
            self.len
        );
        // SAFETY: in bounds by the assertion, exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }

    /// The `len` values from `start`, for any number of readers.
    ///
    /// # Safety
    ///
    /// No live part of [`Spread::slice`] overlaps.
    ///
    /// # Panics
    ///
    /// If they end after the slice.
    pub(crate) unsafe fn view(&self, start: usize, len: usize) -> &[T] {
        assert!(
            start <= self.len && len <= self.len - start,
            "view {start}..+{len} of {} values",
            self.len
        );
        // SAFETY: in bounds by the assertion, not written by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.start.add(start), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn every_task_runs_once_for_any_number_of_threads_and_tasks() {
        for n_threads in [0, 1, 2, 3, 8] {
            let mut pool = Pool::new(n_threads);
            for n_tasks in [0, 1, 2, 3, 7, 64, 1000] {
                for _ in 0..20 {
                    let runs: Vec<AtomicU32> = (0..n_tasks).map(|_| AtomicU32::new(0)).collect();
                    pool.run(n_tasks, |task, worker| {
                        assert!(worker < n_threads.max(1));
                        runs[task].fetch_add(1, Ordering::Relaxed);
                    });
                    for (task, n) in runs.iter().enumerate() {
                        assert_eq!(
                            n.load(Ordering::Relaxed),
                            1,
                            "{n_threads} threads, task {task} of {n_tasks}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_worker_number_is_never_in_two_tasks_at_once() {
        let mut pool = Pool::new(4);
        let inside: Vec<AtomicU32> = (0..4).map(|_| AtomicU32::new(0)).collect();
        for _ in 0..200 {
            pool.run(16, |_, worker| {
                assert_eq!(inside[worker].fetch_add(1, Ordering::SeqCst), 0);
                std::thread::yield_now();
                inside[worker].fetch_sub(1, Ordering::SeqCst);
            });
        }
    }

    #[test]
    fn a_region_after_the_workers_have_parked_still_runs() {
        let mut pool = Pool::new(3);
        for pause_us in [0, 50, 500, 5_000] {
            std::thread::sleep(Duration::from_micros(pause_us));
            let sum = AtomicUsize::new(0);
            pool.run(100, |task, _| {
                sum.fetch_add(task, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 4950, "after a pause of {pause_us} us");
        }
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_pool_survives() {
        for n_threads in [1, 2, 4] {
            let mut pool = Pool::new(n_threads);
            for guilty in [0, 1, 17, 99] {
                let caught = catch_unwind(AssertUnwindSafe(|| {
                    pool.run(100, |task, _| {
                        assert!(task != guilty, "task {task} gave up");
                    });
                }));
                let payload = caught.expect_err("the panic was lost");
                let message = payload.downcast_ref::<String>().expect("a formatted panic");
                assert_eq!(*message, format!("task {guilty} gave up"));
                let sum = AtomicUsize::new(0);
                pool.run(10, |task, _| {
                    sum.fetch_add(task, Ordering::Relaxed);
                });
                assert_eq!(sum.into_inner(), 45);
            }
        }
    }

    #[test]
    fn scratch_is_exclusive_and_chunks_cover_the_slice() {
        let mut pool = Pool::new(4);
        let mut counts = vec![0usize; 4];
        pool.run_with(&mut counts, 1000, |_, own| *own += 1);
        assert_eq!(counts.iter().sum::<usize>(), 1000);
        for len in [0, 1, 15, 16, 17, 100] {
            let mut values = vec![0; len];
            pool.for_chunks(&mut values, 16, |start, chunk| {
                for (i, v) in chunk.iter_mut().enumerate() {
                    *v += start + i;
                }
            });
            assert!(values.iter().enumerate().all(|(i, &v)| i == v), "{len}");
        }
    }

    #[test]
    #[should_panic(expected = "3 scratch values for 4 threads")]
    fn too_little_scratch_is_refused() {
        Pool::new(4).run_with(&mut [0; 3], 1, |_, _| {});
    }
}
