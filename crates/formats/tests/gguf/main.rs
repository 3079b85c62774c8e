//! GGUF files, whole and damaged.

mod damage;
mod exercise;
mod files;
mod getters;
mod split;
