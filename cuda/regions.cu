// The means of few regions of many pixels, which no list is made for: a block for each looks
// whether its region changed, adds it up, and applies the rule.
//
// Specialised on NUMBER; VEC, the numbers a thread reads at once; and RMS, the norm.
#include "whole.cuh"

constexpr int THREADS = 256;

struct RegionArgs {
    Rule rule;
    const byte* mask;       // of the input
    const int* changed;     // how many of its pixels did
    const Number* input;
    const int* rows;        // [height_out, taps_y]: input rows, or -1
    const int* cols;        // [width_out, taps_x]
    const float* divisors;  // [height_out] and [width_out], whose product divides
    Number* output;
    int* count;             // regions that were evaluated
    int height_in, width_in, height, taps_y, taps_x, step_in, step_out;
    int width;              // threads that share a pixel
};

typedef Pack<Number, VEC> OutPack;
typedef Pack<float, VEC> Sums;

struct Region {
    const int* rows;
    const int* cols;
    long long first;  // the lane's first pixel
    float divisor;
};

__device__ __forceinline__ bool has_changed(const RegionArgs& args, const Region& region) {
    int set = 0;
    for (int i = threadIdx.x; i < args.taps_y * args.taps_x; i += THREADS) {
        const int row = region.rows[i / args.taps_x], col = region.cols[i % args.taps_x];
        if (row >= 0 && col >= 0) set |= args.mask[region.first + row * args.width_in + col];
    }
    return set != 0;
}

// The sum of a thread's pixels, at channels from c on.
__device__ __forceinline__ Sums sum_of(const RegionArgs& args, const Region& region, int c,
                                       int group, int groups) {
    Sums sum = {};
    UNROLL_BY_4
    for (int i = group; i < args.taps_y * args.taps_x; i += groups) {
        const int row = region.rows[i / args.taps_x], col = region.cols[i % args.taps_x];
        if (row < 0 || col < 0) continue;
        const OutPack pack = *reinterpret_cast<const OutPack*>(
            args.input + (region.first + row * args.width_in + col) * args.step_in + c);
        UNROLL
        for (int v = 0; v < VEC; ++v) sum.at[v] += to_float(pack.at[v]);
    }
    return sum;
}

// Writes new values to shared memory, and returns the thread's part of the norm.
__device__ __forceinline__ float average(const RegionArgs& args, const Region& region,
                                         const Number* old, Number* now, Sums* memory,
                                         float threshold) {
    const int slot = threadIdx.x % args.width, group = threadIdx.x / args.width;
    const int groups = THREADS / args.width;
    float norm = 0.f;
    NO_UNROLL
    for (int base = 0; base < args.rule.channels; base += args.width * VEC) {
        const int c = base + slot * VEC;
        const bool works = c < args.rule.channels && group < groups;
        Sums sum = {};
        if (works) sum = sum_of(args, region, c, group, groups);
        memory[threadIdx.x] = sum;
        block_barrier();
        if (group == 0 && works) {
            UNROLL_BY_4
            for (int g = 1; g < groups; ++g) {
                UNROLL
                for (int v = 0; v < VEC; ++v) sum.at[v] += memory[g * args.width + slot].at[v];
            }
            UNROLL
            for (int v = 0; v < VEC; ++v) {
                from_float(activate(sum.at[v] / region.divisor, args.rule), now[c + v]);
                norm += score(to_float(now[c + v]), to_float(old[c + v]), threshold, RMS);
            }
        }
        block_barrier();
    }
    return norm;
}

// blockIdx.x is the region, and blockIdx.y the lane.
extern "C" __global__ void __launch_bounds__(THREADS) average_regions(RegionArgs args) {
    SHARED_MEMORY(memory);
    float* warps = reinterpret_cast<float*>(memory);
    float* more_warps = warps + THREADS / WARP;
    Sums* sums = reinterpret_cast<Sums*>(more_warps + THREADS / WARP);
    Number* now = reinterpret_cast<Number*>(sums + THREADS);
    wait_for_earlier_kernels();
    let_next_kernel_begin();
    const int lane = blockIdx.y, y = blockIdx.x / args.rule.width, x = blockIdx.x % args.rule.width;
    const int fresh = args.rule.fresh[lane];
    if (*args.changed == 0 && !fresh) return;
    const Region region = {args.rows + y * args.taps_y, args.cols + x * args.taps_x,
                           static_cast<long long>(lane) * args.height_in * args.width_in,
                           args.divisors[y] * args.divisors[args.height + x]};
    const float found = block_sum(has_changed(args, region) ? 1.f : 0.f, warps);
    if (found == 0.f && !fresh) return;
    const int pixel = lane * args.rule.plane + blockIdx.x;
    Number* output = args.output + static_cast<long long>(pixel) * args.step_out;
    const float norm = average(args, region, output, now, sums, args.rule.thresholds[lane]);
    const bool changed = replaces(args.rule, lane, block_sum(norm, more_warps));
    if (threadIdx.x == 0) atomicAdd(args.count, 1);
    tell(args.rule, changed, pixel);
    if (!changed) return;
    for (int c = threadIdx.x * VEC; c < args.rule.channels; c += THREADS * VEC)
        *reinterpret_cast<OutPack*>(output + c) = *reinterpret_cast<const OutPack*>(now + c);
}
