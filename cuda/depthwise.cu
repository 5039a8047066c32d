// Depthwise convolutions whose taps are a window, at the candidates, with the rule applied behind.
//
// A thread has OUT_VEC channels; a group of threads has all of a pixel, or of RUN neighbours of a
// row, which read their columns and the filter once. The norm over a pixel's channels is added up
// through shared memory, always in the same order. So a pixel of many channels takes as long as
// one of few, and all groups of a block decide together.
//
// With ALL (common.cuh), all pixels are evaluated, and written without being compared.
//
// Specialised on NUMBER; OUT_VEC; RUN; TAPS, those of a row; STEP and SPREAD, the columns from a
// pixel's to its neighbour's and from a tap to the next; RMS, the norm; ACTIVATE (common.cuh).
#include "conv_args.cuh"

constexpr int THREADS = 256, BLOCKS = 2, TERMS = 8;  // lanes that add up a norm

struct DepthwiseArgs {
    Rule rule;
    const Number* input;
    const Number* weight;    // [taps_y, TAPS, channels]
    const float* bias;       // [channels] or null
    const Number* residual;  // as large as the output, or null
    Number* output;
    const int* list;
    const int* count;
    int step_in, step_out, step_residual;
    int height_in, width_in, height, width;
    int taps_y;
    int pixels;         // of the output
    int packs, groups;  // threads of a group, and groups of a block
    Window window;
};

typedef Pack<Number, OUT_VEC> OutPack;

// Shared memory, in this order; `shared_bytes` in depthwise.py counts the same.
struct Shared {
    OutPack* values;  // [RUN][THREADS]: new ones, of a thread's own pixels
    float* norms;     // [RUN][THREADS]: their parts
    int* changed;     // [RUN * THREADS]: the block's pixels, a group's behind another's, or -1
};

__device__ __forceinline__ OutPack pack_at(const Number* from) {
    return *reinterpret_cast<const OutPack*>(from);
}

__device__ __forceinline__ bool within(int place, int size) { return place >= 0 && place < size; }

// Sums the taps of COUNT neighbours, of which `pixel` is the first, in channels from c on.
template <int COUNT>
__device__ __forceinline__ void add_taps(const DepthwiseArgs& args, int pixel, int c,
                                         float (&sums)[COUNT][OUT_VEC]) {
    constexpr int COLUMNS = (COUNT - 1) * STEP + (TAPS - 1) * SPREAD + 1;
    // Rows that are asked for together: as many as registers hold.
    constexpr int ROWS = COUNT > 1 || TAPS > 5 ? 1 : 2;
    const int line = pixel / args.width, x = pixel - line * args.width;
    const int lane = line / args.height, y = line - lane * args.height;
    const int left = args.window.first_x + x * STEP;
    const Number* filter = args.weight + c;
    const int top = args.window.first_y + y * args.window.step_y;
    NO_UNROLL
    for (int t = 0; t < args.taps_y; t += ROWS) {
        if (ROWS == 1 && !within(top + t * args.window.spread_y, args.height_in)) {
            filter += TAPS * args.rule.channels;
            continue;
        }
        OutPack columns[ROWS][COLUMNS], weights[ROWS][TAPS];
        UNROLL
        for (int i = 0; i < ROWS; ++i) {
            const int row = top + (t + i) * args.window.spread_y;
            const bool is_tap = ROWS == 1 || t + i < args.taps_y;
            const bool exists = ROWS == 1 || (is_tap && within(row, args.height_in));
            const Number* from = args.input + c
                + (static_cast<long long>(lane * args.height_in + row) * args.width_in + left)
                      * args.step_in;
            UNROLL
            for (int k = 0; k < COLUMNS; ++k) {
                columns[i][k] = OutPack{};
                if (exists && within(left + k, args.width_in))
                    columns[i][k] = pack_at(from + k * args.step_in);
            }
            UNROLL
            for (int j = 0; j < TAPS; ++j, filter += args.rule.channels) {
                weights[i][j] = OutPack{};
                if (is_tap) weights[i][j] = pack_at(filter);
            }
        }
        UNROLL
        for (int i = 0; i < ROWS; ++i) {
            UNROLL
            for (int j = 0; j < TAPS; ++j) {
                UNROLL
                for (int v = 0; v < OUT_VEC; ++v) {
                    const float weight = to_float(weights[i][j].at[v]);
                    UNROLL
                    for (int n = 0; n < COUNT; ++n)
                        sums[n][v] += to_float(columns[i][n * STEP + j * SPREAD].at[v]) * weight;
                }
            }
        }
    }
}

// Makes the new values of COUNT neighbours, the `turn`th of the group's and those behind it.
template <int COUNT>
__device__ __forceinline__ void evaluate(const DepthwiseArgs& args, const Shared& shared, int pixel,
                                         int turn, int c) {
    Number* before = args.output + static_cast<long long>(pixel) * args.step_out + c;
    OutPack old[COUNT];
    if (!ALL && COUNT == 1) old[0] = pack_at(before);  // asked for early, where that takes few registers
    float sums[COUNT][OUT_VEC];
    UNROLL
    for (int v = 0; v < OUT_VEC; ++v) {
        const float bias = args.bias ? args.bias[c + v] : 0.f;
        UNROLL
        for (int n = 0; n < COUNT; ++n) sums[n][v] = bias;
    }
    add_taps(args, pixel, c, sums);
    const float threshold = ALL ? 0.f : args.rule.thresholds[pixel / args.rule.plane];
    UNROLL
    for (int n = 0; n < COUNT; ++n) {
        if (!ALL && COUNT > 1) old[n] = pack_at(before + n * args.step_out);
    }
    if (args.residual) {
        const Number* residual =
            args.residual + static_cast<long long>(pixel) * args.step_residual + c;
        UNROLL
        for (int n = 0; n < COUNT; ++n) {
            const OutPack added = pack_at(residual + n * args.step_residual);
            UNROLL
            for (int v = 0; v < OUT_VEC; ++v) sums[n][v] += to_float(added.at[v]);
        }
    }
    UNROLL
    for (int n = 0; n < COUNT; ++n) {
        OutPack now;
        float norm = 0.f;
        UNROLL
        for (int v = 0; v < OUT_VEC; ++v) {
            from_float(activate(sums[n][v], args.rule), now.at[v]);
            if (ALL) continue;
            norm += score(to_float(now.at[v]), to_float(old[n].at[v]), threshold, RMS);
        }
        if (ALL) {
            *reinterpret_cast<OutPack*>(before + n * args.step_out) = now;
            continue;
        }
        shared.values[(turn + n) * THREADS + threadIdx.x] = now;
        shared.norms[(turn + n) * THREADS + threadIdx.x] = norm;
    }
}

// Whether the list has RUN neighbours of a row from `place` on.
__device__ __forceinline__ bool is_run(const DepthwiseArgs& args, int place, int count, int pixel) {
    if (place + RUN > count || pixel % args.width + RUN > args.width) return false;
    bool all = true;
    UNROLL
    for (int r = 1; r < RUN; ++r) all = all && args.list[place + r] == pixel + r;
    return all;
}

// Decides over the block's pixels, TERMS lanes on each.
__device__ __forceinline__ void decide(const DepthwiseArgs& args, const Shared& shared, int start,
                                       int count, int rows, int run) {
    const int term = threadIdx.x % TERMS;
    NO_UNROLL
    for (int first = 0; first < rows; first += blockDim.x / TERMS) {
        const int row = first + threadIdx.x / TERMS;
        const bool exists = row < rows && start + row < count;
        const int pixel = exists ? args.list[start + row] : 0, lane = pixel / args.rule.plane;
        const int fresh = args.rule.fresh[lane];
        const float threshold = args.rule.thresholds[lane];
        const float* norms = shared.norms + row % run * THREADS + row / run * args.packs;
        float sum = 0.f;
        NO_UNROLL
        for (int k = term; exists && k < args.packs; k += TERMS) sum += norms[k];
        sum = group_sum<TERMS>(sum);
        const bool changed = exists && (fresh || exceeds(sum, args.rule, threshold));
        if (term == 0 && row < rows) shared.changed[row] = changed ? pixel : -1;
    }
}

// Evaluates all pixels, by runs of a row, of which the last begins early enough to end with it.
__device__ __forceinline__ void evaluate_all(const DepthwiseArgs& args) {
    const int run = args.width < RUN ? 1 : RUN;
    const int across = ceil_div(args.width, run), runs = args.pixels / args.width * across;
    const int group = threadIdx.x / args.packs, c = (threadIdx.x - group * args.packs) * OUT_VEC;
    if (group >= args.groups) return;
    NO_UNROLL
    for (int i = blockIdx.x * args.groups + group; i < runs; i += gridDim.x * args.groups) {
        const int line = i / across, x = min((i - line * across) * run, args.width - run);
        const int pixel = line * args.width + x;
        if (run == RUN) evaluate<RUN>(args, Shared{}, pixel, 0, c);
        else evaluate<1>(args, Shared{}, pixel, 0, c);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) depthwise(DepthwiseArgs args) {
    SHARED_MEMORY(memory);
    if (ALL) {
        wait_for_earlier_kernels();
        let_next_kernel_begin();
        evaluate_all(args);
        return;
    }
    Shared shared;
    shared.values = reinterpret_cast<OutPack*>(memory);
    shared.norms = reinterpret_cast<float*>(shared.values + RUN * THREADS);
    shared.changed = reinterpret_cast<int*>(shared.norms + RUN * THREADS);
    wait_for_earlier_kernels();
    let_next_kernel_begin();
    const int count = *args.count, blocks = gridDim.x;
    // Few candidates are spread over many multiprocessors, a warp or a pixel on each.
    // Neighbours together, where there are many, or more than can be computed at once and most are
    // candidates: what is no run of neighbours takes RUN times as long then.
    const int rounds = count > args.pixels / 4 * 3 ? 1 : RUN;
    const int run = RUN > 1 && count > rounds * blocks * args.groups ? RUN : 1;
    const int of_warp = max(1, WARP / args.packs);
    const int groups =
        min(args.groups, ceil_div(ceil_div(count, blocks * run), of_warp) * of_warp);
    const int group = threadIdx.x / args.packs;
    const int c = (threadIdx.x - group * args.packs) * OUT_VEC, rows = groups * run;
    NO_UNROLL
    for (int start = blockIdx.x * rows; start < count; start += blocks * rows) {
        const int place = start + group * run;
        if (group < groups && place < count) {
            const int pixel = args.list[place];
            if (RUN > 1 && run == RUN && is_run(args, place, count, pixel)) {
                evaluate<RUN>(args, shared, pixel, 0, c);
            } else {
                NO_UNROLL
                for (int r = 0; r < run && place + r < count; ++r)
                    evaluate<1>(args, shared, args.list[place + r], r, c);
            }
        }
        block_barrier();
        decide(args, shared, start, count, rows, run);
        block_barrier();
        NO_UNROLL
        for (int r = 0; r < run && group < groups; ++r) {
            const int pixel = shared.changed[group * run + r];
            if (pixel < 0) continue;
            *reinterpret_cast<OutPack*>(args.output + static_cast<long long>(pixel) * args.step_out
                                        + c) = shared.values[r * THREADS + threadIdx.x];
        }
        NO_UNROLL
        for (int first = 0; first < rows; first += blockDim.x) {
            const int row = first + threadIdx.x;
            const int pixel = row < rows ? shared.changed[row] : -1;
            if (pixel >= 0) mark(args.rule, pixel);
            list_changes(args.rule, pixel >= 0, pixel);
        }
    }
}
