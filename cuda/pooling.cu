// Sums of all pixels of a lane, a part of them each block: what pooling to one pixel divides.
//
// Specialised on NUMBER, and VEC, the numbers a thread reads at once.
#include "common.cuh"

constexpr int THREADS = 256;

struct PoolArgs {
    const Number* input;
    float* parts;        // [lanes, parts, channels]
    const int* changed;  // pixels of the input that did
    const int* fresh;    // as in Rule
    int step, channels, plane, lanes;
    int width;           // threads that share a pixel, a power of 2
    int unused;
};

// blockIdx.x is the part, and blockIdx.y the lane.
extern "C" __global__ void __launch_bounds__(THREADS) sum_pixels(PoolArgs args) {
    SHARED_MEMORY(memory);
    typedef Pack<Number, VEC> InPack;
    typedef Pack<float, VEC> Sums;
    Sums* sums = reinterpret_cast<Sums*>(memory);
    wait_for_earlier_kernels();
    let_next_kernel_begin();
    if (*args.changed == 0 && args.fresh[args.lanes] == 0) return;
    const int slot = threadIdx.x % args.width, group = threadIdx.x / args.width;
    const int groups = THREADS / args.width, each = ceil_div(args.plane, gridDim.x);
    const int first = blockIdx.x * each, last = min(first + each, args.plane);
    const Number* map = args.input + static_cast<long long>(blockIdx.y) * args.plane * args.step;
    NO_UNROLL
    for (int base = 0; base < args.channels; base += args.width * VEC) {
        const int c = base + slot * VEC;
        Sums mine = {};
        if (c < args.channels) {
            UNROLL_BY_4
            for (int pixel = first + group; pixel < last; pixel += groups) {
                const InPack pack = *reinterpret_cast<const InPack*>(
                    map + static_cast<long long>(pixel) * args.step + c);
                UNROLL
                for (int v = 0; v < VEC; ++v) mine.at[v] += to_float(pack.at[v]);
            }
        }
        sums[threadIdx.x] = mine;
        block_barrier();
        if (group == 0 && c < args.channels) {
            NO_UNROLL
            for (int g = 1; g < groups; ++g) {
                UNROLL
                for (int v = 0; v < VEC; ++v) mine.at[v] += sums[g * args.width + slot].at[v];
            }
            const long long row = static_cast<long long>(blockIdx.y) * gridDim.x + blockIdx.x;
            UNROLL
            for (int v = 0; v < VEC; ++v) args.parts[row * args.channels + c + v] = mine.at[v];
        }
        block_barrier();
    }
}
