// What is fused behind a convolution of whole maps: bias, residual and activation, for all pixels,
// without comparing; where the library has left it, if need be.
//
// Specialised on NUMBER; VEC, the numbers a thread moves at once; ACTIVATE (common.cuh).
#include "common.cuh"

constexpr int THREADS = 256, TOGETHER = 4;  // pixels that a thread asks for at once

struct FinishArgs {
    Rule rule;               // of which the activation's settings are used
    const Number* given;     // the convolution, without gaps
    const float* bias;       // [channels] or null
    const Number* residual;  // as large as the output, or null
    Number* output;
    int step_out, step_residual, pixels, packs;  // of a pixel
};

typedef Pack<Number, VEC> OutPack;

// blockIdx.y is the slice of channels, where a pixel has more packs than a block threads.
extern "C" __global__ void __launch_bounds__(THREADS, 2) finish_all(FinishArgs args) {
    wait_for_earlier_kernels();
    let_next_kernel_begin();
    const int across = min(args.packs, THREADS), rows = THREADS / across;
    const int row = threadIdx.x / across;
    const int pack = blockIdx.y * THREADS + threadIdx.x - row * across, c = pack * VEC;
    if (row >= rows || pack >= args.packs) return;
    float bias[VEC];
    UNROLL
    for (int v = 0; v < VEC; ++v) bias[v] = args.bias ? args.bias[c + v] : 0.f;
    const long long first = static_cast<long long>(blockIdx.x) * rows * TOGETHER + row;
    OutPack given[TOGETHER], added[TOGETHER];
    UNROLL
    for (int i = 0; i < TOGETHER; ++i) {
        const long long pixel = first + i * rows;
        if (pixel >= args.pixels) continue;
        given[i] = *reinterpret_cast<const OutPack*>(args.given + pixel * args.rule.channels + c);
        added[i] = OutPack{};
        if (args.residual)
            added[i] = *reinterpret_cast<const OutPack*>(
                args.residual + pixel * args.step_residual + c);
    }
    UNROLL
    for (int i = 0; i < TOGETHER; ++i) {
        const long long pixel = first + i * rows;
        if (pixel >= args.pixels) continue;
        OutPack now;
        UNROLL
        for (int v = 0; v < VEC; ++v) {
            const float x = to_float(given[i].at[v]) + bias[v] + to_float(added[i].at[v]);
            from_float(activate(x, args.rule), now.at[v]);
        }
        *reinterpret_cast<OutPack*>(args.output + pixel * args.step_out + c) = now;
    }
}
