fn raw_value(at: u32) -> f32 { return kv[at]; }
