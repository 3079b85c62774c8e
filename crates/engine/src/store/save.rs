//! Reading what is to be stored out of a slot.

use ds4_model::{BackendError, RowKind, SlotState, StoredRows};

use super::layout::Group;
use crate::engine::Engine;

/// A slot whose rows can be read.
pub trait RowSource {
    /// Rows in logical order, several groups at a time: positions of a ring, numbers of
    /// compressed rows.
    fn read_groups(&mut self, groups: &[crate::Group]) -> Result<Vec<StoredRows>, BackendError>;
}

/// A slot of an engine.
#[derive(Debug)]
pub struct SlotRows<'a> {
    /// The engine.
    pub engine: &'a mut Engine,
    /// The slot.
    pub slot: usize,
}

impl RowSource for SlotRows<'_> {
    fn read_groups(&mut self, groups: &[crate::Group]) -> Result<Vec<StoredRows>, BackendError> {
        self.engine.read_groups(self.slot, groups)
    }
}

impl RowSource for &SlotState {
    fn read_groups(&mut self, groups: &[crate::Group]) -> Result<Vec<StoredRows>, BackendError> {
        let read = |(layer, kind, range): &crate::Group| {
            let layers = match kind.is_ring() {
                false => &self.rows,
                true => &self.rings,
            };
            let stored = layers
                .get(*layer)
                .and_then(|rows| rows.iter().find(|(found, _)| found == kind));
            match stored {
                Some((_, stored)) => rows_of(stored, *layer, *kind, range.clone()),
                None => Err(no_rows(*layer, *kind, range.clone())),
            }
        };
        groups.iter().map(read).collect()
    }
}

/// Some of the rows of a state or a frontier.
pub(crate) fn rows_of(
    stored: &StoredRows,
    layer: usize,
    kind: RowKind,
    range: std::ops::Range<usize>,
) -> Result<StoredRows, BackendError> {
    let row_bytes = stored.width * stored.element.n_bytes();
    let bytes = range.start.checked_sub(stored.first).and_then(|start| {
        let start = start * row_bytes;
        stored.bytes.get(start..start + range.len() * row_bytes)
    });
    match bytes {
        Some(bytes) => Ok(StoredRows {
            first: range.start,
            bytes: bytes.to_vec(),
            ..*stored
        }),
        None => Err(no_rows(layer, kind, range)),
    }
}

fn no_rows(layer: usize, kind: RowKind, range: std::ops::Range<usize>) -> BackendError {
    let what = format!("the state has no rows {range:?} of {kind:?} in layer {layer}");
    BackendError::Device(what)
}

/// Why a state could not be read for saving.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The device failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The slot has rows of another shape than the store was opened for.
    #[error(
        "{kind:?} rows of layer {layer} are {found_bytes} bytes of {found_width} elements, expected {expected_bytes} of {expected_width}: the store was opened for another geometry or rounding"
    )]
    Layout {
        /// The layer.
        layer: usize,
        /// The rows.
        kind: RowKind,
        /// Bytes read.
        found_bytes: usize,
        /// Elements of a row read.
        found_width: usize,
        /// Bytes expected.
        expected_bytes: usize,
        /// Elements of a row expected.
        expected_width: usize,
    },
}

/// Reads groups of rows.
pub(crate) fn read_groups(
    source: &mut dyn RowSource,
    groups: Vec<Group>,
) -> Result<Vec<(Group, Vec<u8>)>, SaveError> {
    let wanted: Vec<crate::Group> = groups
        .iter()
        .map(|group| (group.layer, group.kind, group.range.clone()))
        .collect();
    let rows = source.read_groups(&wanted)?;
    groups
        .into_iter()
        .zip(rows)
        .map(|(group, stored)| {
            let format = group.format;
            if (stored.element, stored.width, stored.bytes.len())
                != (format.element, format.width, group.n_bytes())
            {
                return Err(SaveError::Layout {
                    layer: group.layer,
                    kind: group.kind,
                    found_bytes: stored.bytes.len(),
                    found_width: stored.width,
                    expected_bytes: group.n_bytes(),
                    expected_width: format.width,
                });
            }
            Ok((group, stored.bytes))
        })
        .collect()
}
