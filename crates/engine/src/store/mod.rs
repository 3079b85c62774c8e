//! States on disk: what was computed once is read back, after a restart too.
mod file;
mod handle;
mod index;
mod journal;
mod key;
mod layout;
mod load;
mod maintain;
mod rows;
mod save;
mod scan;
mod turns;
mod volume;
mod writer;

pub use file::*;
pub use handle::*;
pub use index::*;
pub use key::*;
pub use layout::*;
pub use load::*;
pub use maintain::*;
pub use rows::*;
pub use save::*;
pub use turns::*;
