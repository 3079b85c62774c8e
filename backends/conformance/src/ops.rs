//! Every op against the reference.
