//! Random weights and rows.
