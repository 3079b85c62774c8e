//! A loaded model and its timelines.
