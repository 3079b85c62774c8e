//!product shared shared_x
