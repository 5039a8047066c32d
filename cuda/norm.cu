// Norms over groups of channels of whole maps: what `sums.cu` left becomes a center, a scale and a
// shift a channel, and these make the new values, to which the rule is applied pixel by pixel.
//
// Specialised on NUMBER; VEC, the numbers a thread moves at once; LANES, neighbours of a warp that
// share a pixel, a power of 2; PACKS, how often each moves numbers of it, or 0 where that is so
// often that new values are computed a second time; and RMS, the norm.
#include "whole.cuh"

constexpr int THREADS = 256, THREADS_OF_GROUP = 1024;
constexpr int PIXELS = WARP / LANES, STEP = LANES * VEC;

struct NormArgs {
    Rule rule;
    Changes inputs;
    const Number* input;
    const float* parts;   // [lanes, part_count, channels / together, 2]: means, squared distances
    float* table;         // [lanes, 3, channels]: center, scale, shift
    const float* weight;  // [channels] or null
    const float* bias;    // the same
    Number* output;
    int* count;           // pixels that were evaluated
    float eps;
    int part_count, together, group;  // group: channels that share mean and spread
    int step_in, step_out;
};

// A block a group of channels and a lane.
extern "C" __global__ void __launch_bounds__(THREADS_OF_GROUP) finish_moments(NormArgs args) {
    SHARED_MEMORY(memory);
    float* sums = reinterpret_cast<float*>(memory);
    float* more_sums = sums + THREADS_OF_GROUP / WARP;
    wait_for_earlier_kernels();
    let_next_kernel_begin();
    const int lane = blockIdx.y;
    if (!needed(args.inputs, args.rule.fresh[lane])) return;
    const int channels = args.rule.channels, first = blockIdx.x * args.group;
    const int row = channels / args.together, entries = args.group / args.together;
    const int each = ceil_div(args.rule.plane, args.part_count);
    const float* parts = args.parts
        + 2ll * (static_cast<long long>(lane) * args.part_count * row + first / args.together);
    float sum = 0.f, spread = 0.f;
    UNROLL_BY_4
    for (int i = threadIdx.x; i < args.part_count * entries; i += blockDim.x) {
        const int part = i / entries, pixels = min(each, args.rule.plane - part * each);
        if (pixels > 0) sum += parts[2 * (part * row + i % entries)] * pixels;
    }
    const float plane = static_cast<float>(args.rule.plane);
    const float mean = block_sum(sum, sums) / (plane * entries);
    UNROLL_BY_4
    for (int i = threadIdx.x; i < args.part_count * entries; i += blockDim.x) {
        const int part = i / entries, pixels = min(each, args.rule.plane - part * each);
        if (pixels <= 0) continue;
        const float* entry = parts + 2 * (part * row + i % entries);
        const float d = entry[0] - mean;
        spread += entry[1] + static_cast<float>(pixels) * args.together * (d * d);
    }
    const float variance = block_sum(spread, more_sums) / (plane * args.group);
    const float scale = 1.f / sqrtf(variance + args.eps);
    float* table = args.table + 3ll * lane * channels + first;
    for (int c = threadIdx.x; c < args.group; c += blockDim.x) {
        table[c] = mean;
        table[channels + c] = args.weight ? scale * args.weight[first + c] : scale;
        table[2 * channels + c] = args.bias ? args.bias[first + c] : 0.f;
    }
}

typedef Pack<Number, VEC> OutPack;

// What makes new values of some channels.
struct Factors { float center[VEC], scale[VEC], shift[VEC]; };

__device__ __forceinline__ void read_factors(const NormArgs& args, int lane, int c, Factors& to) {
    const float* table = args.table + 3ll * lane * args.rule.channels + c;
    read_floats(table, to.center);
    read_floats(table + args.rule.channels, to.scale);
    read_floats(table + 2 * args.rule.channels, to.shift);
}

constexpr bool KEPT = PACKS == 1 || PACKS == 2;  // the factors, in registers

// New values of some channels, of which the input is given; returns their part of the norm.
__device__ __forceinline__ float normalize(OutPack& now, const OutPack& old, const Factors& by,
                                           float threshold) {
    float sum = 0.f;
    UNROLL
    for (int v = 0; v < VEC; ++v) {
        const float x = (to_float(now.at[v]) - by.center[v]) * by.scale[v] + by.shift[v];
        from_float(x, now.at[v]);
        sum += score(to_float(now.at[v]), to_float(old.at[v]), threshold, RMS);
    }
    return sum;
}

// All lanes of a warp come here, also those whose pixel is behind the last (-1).
__device__ __forceinline__ bool normalize_pixel(const NormArgs& args, long long pixel, int lane,
                                                float threshold, int fresh,
                                                const Factors (&kept)[KEPT ? PACKS : 1]) {
    const int first = threadIdx.x % LANES * VEC, channels = pixel < 0 ? 0 : args.rule.channels;
    const Number* input = args.input + pixel * args.step_in;
    Number* output = args.output + pixel * args.step_out;
    float sum = 0.f;
#if PACKS
    OutPack now[PACKS], old[PACKS];
    UNROLL
    for (int p = 0; p < PACKS; ++p) {
        const int c = first + p * STEP;
        if (c >= channels) continue;
        now[p] = *reinterpret_cast<const OutPack*>(input + c);
        old[p] = *reinterpret_cast<const OutPack*>(output + c);
    }
    UNROLL
    for (int p = 0; p < PACKS; ++p) {
        const int c = first + p * STEP;
        if (c >= channels) continue;
        if (KEPT) {
            sum += normalize(now[p], old[p], kept[KEPT ? p : 0], threshold);
        } else {
            Factors by;
            read_factors(args, lane, c, by);
            sum += normalize(now[p], old[p], by, threshold);
        }
    }
#else
    for (int turn = 0; turn < 2; ++turn) {  // compared, then written
        for (int c = first; c < channels; c += STEP) {
            OutPack now = *reinterpret_cast<const OutPack*>(input + c);
            Factors by;
            read_factors(args, lane, c, by);
            OutPack* place = reinterpret_cast<OutPack*>(output + c);
            const float part = normalize(now, *place, by, threshold);
            if (turn == 0) sum += part;
            else *place = now;
        }
        if (turn == 1) break;
        sum = group_sum<LANES>(sum);
        if (pixel < 0 || (!fresh && !exceeds(sum, args.rule, threshold))) return false;
    }
#endif
#if PACKS
    sum = group_sum<LANES>(sum);
    if (pixel < 0 || (!fresh && !exceeds(sum, args.rule, threshold))) return false;
    UNROLL
    for (int p = 0; p < PACKS; ++p)
        if (first + p * STEP < channels)
            *reinterpret_cast<OutPack*>(output + first + p * STEP) = now[p];
#endif
    if (threadIdx.x % LANES == 0) mark(args.rule, static_cast<int>(pixel));
    return true;
}

// blockIdx.y is the lane.
extern "C" __global__ void __launch_bounds__(THREADS, 2) normalize_pixels(NormArgs args) {
    wait_for_earlier_kernels();
    let_next_kernel_begin();
    const int lane = blockIdx.y, plane = args.rule.plane, in_warp = threadIdx.x % WARP;
    if (!needed(args.inputs, args.rule.fresh[lane])) return;
    if (blockIdx.x == 0 && threadIdx.x == 0) atomicAdd(args.count, plane);
    const float threshold = args.rule.thresholds[lane];
    const int fresh = args.rule.fresh[lane];
    Factors kept[KEPT ? PACKS : 1];
    UNROLL
    for (int p = 0; KEPT && p < PACKS; ++p) {
        const int c = threadIdx.x % LANES * VEC + p * STEP;
        if (c < args.rule.channels) read_factors(args, lane, c, kept[p]);
    }
    // What changed is listed all LANES turns: then each lane knows of one pixel.
    int mine = 0, turn = 0;
    bool changed = false;
    const int step = gridDim.x * (THREADS / WARP) * PIXELS;
    int start = (threadIdx.x / WARP * gridDim.x + blockIdx.x) * PIXELS;
    NO_UNROLL
    for (; start < plane; start += step) {
        const int at = start + in_warp / LANES;
        const long long pixel = at < plane ? static_cast<long long>(lane) * plane + at : -1;
        const bool moved = normalize_pixel(args, pixel, lane, threshold, fresh, kept);
        if (in_warp % LANES == turn) {
            mine = static_cast<int>(pixel);
            changed = moved;
        }
        if (++turn < LANES) continue;
        list_changes(args.rule, changed, mine);
        turn = 0;
        changed = false;
    }
    list_changes(args.rule, changed, mine);
}
