//! The time of every kernel, by events before and after each.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::driver::{Context, DriverError, Event, Stream};

/// Kernels of a step that have events of their own; later ones are not measured.
const MAX_KERNELS: usize = 8192;

#[derive(Debug)]
pub(crate) struct KernelTimes {
    context: Arc<Context>,
    events: Vec<(Event, Event)>,
    names: Vec<&'static str>,
    /// Name to (launches, milliseconds).
    sums: BTreeMap<&'static str, (u64, f64)>,
}

impl KernelTimes {
    pub(crate) fn new(context: &Arc<Context>) -> Result<KernelTimes, DriverError> {
        Ok(KernelTimes {
            context: context.clone(),
            events: Vec::new(),
            names: Vec::new(),
            sums: BTreeMap::new(),
        })
    }

    pub(crate) fn before(
        &mut self,
        stream: &Stream,
        name: &'static str,
    ) -> Result<(), DriverError> {
        if self.names.len() >= MAX_KERNELS {
            return Ok(());
        }
        if self.events.len() == self.names.len() {
            let event = || Event::new(&self.context, true);
            self.events.push((event()?, event()?));
        }
        stream.record(&self.events[self.names.len()].0)?;
        self.names.push(name);
        Ok(())
    }

    pub(crate) fn after(&mut self, stream: &Stream) -> Result<(), DriverError> {
        match self.names.len() {
            n if n > 0 && n <= self.events.len() => stream.record(&self.events[n - 1].1),
            _ => Ok(()),
        }
    }

    /// Adds the times of a step that is done.
    pub(crate) fn settle(&mut self) -> Result<(), DriverError> {
        for (name, (start, end)) in self.names.drain(..).zip(&self.events) {
            end.wait()?;
            let ms = end.milliseconds_since(start)?.unwrap_or(0.0);
            let sum = self.sums.entry(name).or_default();
            sum.0 += 1;
            sum.1 += f64::from(ms);
        }
        Ok(())
    }

    /// (kernel, launches, milliseconds), longest first.
    pub(crate) fn take(&mut self) -> Vec<(String, u64, f64)> {
        let sums = std::mem::take(&mut self.sums);
        let mut all: Vec<_> = sums
            .into_iter()
            .map(|(name, (n, ms))| (name.to_owned(), n, ms))
            .collect();
        all.sort_by(|a, b| b.2.total_cmp(&a.2));
        all
    }
}
