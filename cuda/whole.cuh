// What kernels share that evaluate a node wherever any of its inputs changed: whether to, and the
// rule for a pixel that a whole block, or the whole grid, looks after.
#pragma once
#include "common.cuh"

constexpr int MOST_SOURCES = 8;

// A node's inputs, as far as it asks whether they changed.
struct Changes {
    const int* changed[MOST_SOURCES];  // how many pixels did
    int sources, unused;
};

// Whether there is anything to do: an input changed, whichever lane's, or it is a first frame.
__device__ __forceinline__ bool needed(const Changes& inputs, int fresh) {
    NO_UNROLL
    for (int s = 0; s < inputs.sources; ++s) fresh |= *inputs.changed[s];
    return fresh != 0;
}

// The sum over a block, in an order of its own; every thread gets it. `memory` has a number for
// each warp, of which there are no more than threads in one, and is free again behind the next
// barrier.
__device__ __forceinline__ float block_sum(float x, float* memory) {
    const int warp = threadIdx.x / WARP, in_warp = threadIdx.x % WARP;
    x = group_sum<WARP>(x);
    if (in_warp == 0) memory[warp] = x;
    block_barrier();
    return group_sum<WARP>(in_warp < blockDim.x / WARP ? memory[in_warp] : 0.f);
}

// Whether a pixel's new numbers replace the old ones, by the sum of all scores.
__device__ __forceinline__ bool replaces(const Rule& rule, int lane, float total) {
    return rule.fresh[lane] || exceeds(total, rule, rule.thresholds[lane]);
}

// Says, once a block, whether the block's pixel changed. All threads come here.
__device__ __forceinline__ void tell(const Rule& rule, bool changed, int pixel) {
    if (threadIdx.x >= WARP) return;
    changed = changed && threadIdx.x == 0;
    if (changed) mark(rule, pixel);
    list_changes(rule, changed, pixel);
}

// Some numbers of float32, as far as 16 bytes at once.
template <int COUNT>
__device__ __forceinline__ void read_floats(const float* from, float (&x)[COUNT]) {
    typedef Pack<float, COUNT < 4 ? COUNT : 4> Some;
    constexpr int WIDTH = sizeof(Some) / sizeof(float);
    UNROLL
    for (int v = 0; v < COUNT; v += WIDTH) {
        const Some some = *reinterpret_cast<const Some*>(from + v);
        UNROLL
        for (int i = 0; i < WIDTH; ++i) x[v + i] = some.at[i];
    }
}
