//! One module for each thing the program does.
pub mod inspect;
