//! What must be true of states on disk.

mod continuation;
mod crash;
mod damage;
mod doors;
mod folder;
mod golden_files;
mod lookup;
mod maintenance;
mod measure;
mod room;
mod synthetic;
mod turn_log;
