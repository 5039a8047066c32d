// The rule for values of one pixel a lane, however many numbers that has: by one block a lane where
// they are few, else by the whole grid, in parts.
//
// Specialised on NUMBER; VEC, the numbers a thread moves at once; RMS, the norm; and POOLED: new
// values are the sums that `sums.cu` left, times alpha, and not given.
#include "whole.cuh"

constexpr int THREADS = 1024, THREADS_OF_PART = 256;

struct VectorArgs {
    Rule rule;
    Changes inputs;
    const Number* given;  // [lanes, channels]
    const float* parts;   // POOLED: [lanes, part_count, channels]
    Number* output;
    float* scores;        // [lanes, gridDim.x]: the grid's parts of the norm
    int* count;           // lanes that were evaluated
    float alpha;
    int part_count, step_out, unused;
};

typedef Pack<Number, VEC> OutPack;

__device__ __forceinline__ float difference(const OutPack& now, const Number* old,
                                            float threshold) {
    const OutPack before = *reinterpret_cast<const OutPack*>(old);
    float sum = 0.f;
    UNROLL
    for (int v = 0; v < VEC; ++v)
        sum += score(to_float(now.at[v]), to_float(before.at[v]), threshold, RMS);
    return sum;
}

// New values of some channels: each group of threads adds up some of the parts.
__device__ __forceinline__ void pool(const VectorArgs& args, int lane, Number* now, float* memory) {
    typedef Pack<float, VEC> Sums;
    Sums* sums = reinterpret_cast<Sums*>(memory);
    const int packs = args.rule.channels / VEC, width = min(packs, THREADS);
    const int slot = threadIdx.x % width, group = threadIdx.x / width, groups = THREADS / width;
    const float* parts = args.parts
                         + static_cast<long long>(lane) * args.part_count * args.rule.channels;
    NO_UNROLL
    for (int base = 0; base < packs; base += width) {
        const int c = (base + slot) * VEC;
        Sums mine = {};
        if (base + slot < packs && group < groups) {
            UNROLL_BY_4
            for (int part = group; part < args.part_count; part += groups) {
                float x[VEC];
                read_floats(parts + part * args.rule.channels + c, x);
                UNROLL
                for (int v = 0; v < VEC; ++v) mine.at[v] += x[v];
            }
        }
        sums[threadIdx.x] = mine;
        block_barrier();
        if (group == 0 && base + slot < packs) {
            UNROLL_BY_4
            for (int g = 1; g < groups; ++g) {
                UNROLL
                for (int v = 0; v < VEC; ++v) mine.at[v] += sums[g * width + slot].at[v];
            }
            UNROLL
            for (int v = 0; v < VEC; ++v) from_float(mine.at[v] * args.alpha, now[c + v]);
        }
        block_barrier();
    }
}

// A block a lane.
extern "C" __global__ void __launch_bounds__(THREADS) settle_vector(VectorArgs args) {
    SHARED_MEMORY(memory);
    wait_for_earlier_kernels();
    let_next_kernel_begin();
    const int lane = blockIdx.x, channels = args.rule.channels;
    if (!needed(args.inputs, args.rule.fresh[lane])) return;
    float* sums = reinterpret_cast<float*>(memory);
    const Number* now = args.given + static_cast<long long>(lane) * channels;
#if POOLED
    Number* made = reinterpret_cast<Number*>(memory + THREADS * VEC * sizeof(float));
    pool(args, lane, made, sums);
    now = made;
#endif
    Number* output = args.output + static_cast<long long>(lane) * args.step_out;
    const float threshold = args.rule.thresholds[lane];
    float sum = 0.f;
    for (int c = threadIdx.x * VEC; c < channels; c += THREADS * VEC)
        sum += difference(*reinterpret_cast<const OutPack*>(now + c), output + c, threshold);
    const bool changed = replaces(args.rule, lane, block_sum(sum, sums));
    if (threadIdx.x == 0) atomicAdd(args.count, 1);
    tell(args.rule, changed, lane);
    if (!changed) return;
    for (int c = threadIdx.x * VEC; c < channels; c += THREADS * VEC)
        *reinterpret_cast<OutPack*>(output + c) = *reinterpret_cast<const OutPack*>(now + c);
}

// The numbers that a block looks after, of the lane blockIdx.y.
struct Range { long long first, last; };

__device__ __forceinline__ Range range_of_block(const VectorArgs& args) {
    const int packs = args.rule.channels / VEC, each = ceil_div(packs, gridDim.x);
    const long long first = static_cast<long long>(blockIdx.x) * each;
    return {first * VEC, min(first + each, static_cast<long long>(packs)) * VEC};
}

// The parts of the norm.
extern "C" __global__ void __launch_bounds__(THREADS_OF_PART) compare_parts(VectorArgs args) {
    SHARED_MEMORY(memory);
    wait_for_earlier_kernels();
    let_next_kernel_begin();
    const int lane = blockIdx.y;
    if (!needed(args.inputs, args.rule.fresh[lane])) return;
    const Number* now = args.given + static_cast<long long>(lane) * args.rule.channels;
    const Number* output = args.output + static_cast<long long>(lane) * args.step_out;
    const float threshold = args.rule.thresholds[lane];
    const Range range = range_of_block(args);
    float sum = 0.f;
    UNROLL_BY_4
    for (long long c = range.first + threadIdx.x * VEC; c < range.last; c += THREADS_OF_PART * VEC)
        sum += difference(*reinterpret_cast<const OutPack*>(now + c), output + c, threshold);
    sum = block_sum(sum, reinterpret_cast<float*>(memory));
    if (threadIdx.x == 0) args.scores[lane * gridDim.x + blockIdx.x] = sum;
}

// Decides, each block for itself, and writes; with the same grid.
extern "C" __global__ void __launch_bounds__(THREADS_OF_PART) write_parts(VectorArgs args) {
    SHARED_MEMORY(memory);
    wait_for_earlier_kernels();
    let_next_kernel_begin();
    const int lane = blockIdx.y;
    if (!needed(args.inputs, args.rule.fresh[lane])) return;
    float sum = 0.f;
    for (int part = threadIdx.x; part < gridDim.x; part += THREADS_OF_PART)
        sum += args.scores[lane * gridDim.x + part];
    const bool changed = replaces(args.rule, lane,
                                  block_sum(sum, reinterpret_cast<float*>(memory)));
    if (blockIdx.x == 0) {
        if (threadIdx.x == 0) atomicAdd(args.count, 1);
        tell(args.rule, changed, lane);
    }
    if (!changed) return;
    const Number* now = args.given + static_cast<long long>(lane) * args.rule.channels;
    Number* output = args.output + static_cast<long long>(lane) * args.step_out;
    const Range range = range_of_block(args);
    UNROLL_BY_4
    for (long long c = range.first + threadIdx.x * VEC; c < range.last; c += THREADS_OF_PART * VEC)
        *reinterpret_cast<OutPack*>(output + c) = *reinterpret_cast<const OutPack*>(now + c);
}
