// naga compiles kernels with cooperative matrices for Vulkan's memory model and leaves all memory
// private to its lane there, so that a compiler may move accesses across a barrier. Atomics are not:
// what is indexed with the 0 that `sync` reads stays behind its barrier.
var<workgroup> nothing: array<atomic<u32>, 4>;
fn begin_sync(lane: u32) {
    if lane < 4u { atomicStore(&nothing[lane], 0u); }
    workgroupBarrier();
}
fn sync() -> u32 {
    workgroupBarrier();
    return atomicLoad(&nothing[0]);
}
