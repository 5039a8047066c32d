// Sums of all pixels of a lane, a part of them each block: what pooling to one pixel divides, and
// what norms over whole maps are made of.
//
// Specialised on NUMBER; VEC, the numbers a thread reads at once; MOMENTS: means, and sums of
// squared distances from them, in place of sums; and TOGETHER, 1 or VEC, the channels that share
// them.
#include "whole.cuh"

constexpr int THREADS = 256;

struct SumArgs {
    Changes inputs;
    const Number* input;
    // [lanes, parts, channels]; of MOMENTS [lanes, parts, channels / TOGETHER, 2].
    float* parts;
    const int* fresh;    // as in Rule
    int step, channels, plane;
    int width;           // threads that share a pixel
    int parts_of_lane;   // gridDim.x is as many times this as a pixel has slices of channels
    int unused;
};

typedef Pack<Number, VEC> InPack;
typedef Pack<float, VEC> Sums;

// Where a thread is: its channels, and which of the part's pixels are its own.
struct Share {
    const Number* from;  // the part's first pixel, at the thread's channels
    int c, group, groups, pixels;
    bool works;
};

__device__ __forceinline__ Share share_of(const SumArgs& args, int part, int slice) {
    const int slot = threadIdx.x % args.width, groups = THREADS / args.width;
    const int each = ceil_div(args.plane, args.parts_of_lane), first = part * each;
    const int c = (slice * args.width + slot) * VEC, group = threadIdx.x / args.width;
    const long long pixel = static_cast<long long>(blockIdx.y) * args.plane + first;
    const int pixels = max(0, min(each, args.plane - first));
    return {args.input + pixel * args.step + c, c, group, groups, pixels,
            c < args.channels && group < groups && pixels > 0};
}

// Adds up the thread's pixels, and then, in the first group, those of all groups. With MOMENTS the
// numbers are taken less the part's first ones, of which squares cannot cancel much.
__device__ __forceinline__ void add_up(const SumArgs& args, const Share& share,
                                       const float (&pivot)[VEC], Sums& sum, Sums& squares,
                                       Sums* memory) {
    if (share.works) {
        UNROLL_BY_4
        for (int pixel = share.group; pixel < share.pixels; pixel += share.groups) {
            const InPack pack = *reinterpret_cast<const InPack*>(
                share.from + static_cast<long long>(pixel) * args.step);
            UNROLL
            for (int v = 0; v < VEC; ++v) {
                const float x = to_float(pack.at[v]) - pivot[v];
                sum.at[v] += x;
                if (MOMENTS) squares.at[v] += x * x;
            }
        }
    }
    memory[threadIdx.x] = sum;
    if (MOMENTS) memory[THREADS + threadIdx.x] = squares;
    block_barrier();
    if (share.group != 0 || !share.works) return;
    NO_UNROLL
    for (int g = 1; g < share.groups; ++g) {
        const int other = g * args.width + threadIdx.x;
        UNROLL
        for (int v = 0; v < VEC; ++v) {
            sum.at[v] += memory[other].at[v];
            if (MOMENTS) squares.at[v] += memory[THREADS + other].at[v];
        }
    }
}

// Writes means and squared distances of some channels, or of all of a pack together.
__device__ __forceinline__ void write_moments(float* to, int pixels, const float (&pivot)[VEC],
                                              const Sums& sum, const Sums& squares) {
    float mean[VEC], spread[VEC];
    UNROLL
    for (int v = 0; v < VEC; ++v) {
        mean[v] = pivot[v] + sum.at[v] / pixels;
        spread[v] = fmaxf(squares.at[v] - sum.at[v] * (sum.at[v] / pixels), 0.f);
        if (squares.at[v] != squares.at[v]) spread[v] = squares.at[v];  // NaN stays
    }
    UNROLL
    for (int v = 0; v < VEC; v += TOGETHER) {
        float middle = 0.f, total = 0.f;
        UNROLL
        for (int i = v; i < v + TOGETHER; ++i) middle += mean[i] / TOGETHER;
        UNROLL
        for (int i = v; i < v + TOGETHER; ++i) {
            const float d = TOGETHER > 1 ? mean[i] - middle : 0.f;
            total += spread[i] + pixels * (d * d);
        }
        to[v / TOGETHER * 2] = middle;
        to[v / TOGETHER * 2 + 1] = total;
    }
}

// blockIdx.x is the part and the slice of channels, and blockIdx.y the lane.
extern "C" __global__ void __launch_bounds__(THREADS) sum_pixels(SumArgs args) {
    SHARED_MEMORY(memory);
    wait_for_earlier_kernels();
    let_next_kernel_begin();
    if (!needed(args.inputs, args.fresh[gridDim.y])) return;
    const int part = blockIdx.x % args.parts_of_lane, slice = blockIdx.x / args.parts_of_lane;
    const Share share = share_of(args, part, slice);
    float pivot[VEC];
    UNROLL
    for (int v = 0; v < VEC; ++v)
        pivot[v] = MOMENTS && share.works ? to_float(share.from[v]) : 0.f;
    Sums sum = {}, squares = {};
    add_up(args, share, pivot, sum, squares, reinterpret_cast<Sums*>(memory));
    if (share.group != 0 || share.c >= args.channels) return;
    const long long row = static_cast<long long>(blockIdx.y) * args.parts_of_lane + part;
    if (MOMENTS) {
        float* to = args.parts + 2 * ((row * args.channels + share.c) / TOGETHER);
        if (share.pixels > 0) write_moments(to, share.pixels, pivot, sum, squares);
        return;
    }
    UNROLL
    for (int v = 0; v < VEC; ++v) args.parts[row * args.channels + share.c + v] = sum.at[v];
}
