// Everything that is no matrix product, at the candidates: LANES neighbours of a warp compute all
// channels of a pixel, and apply the rule.
//
// Specialised on NUMBER; OUT_VEC, the numbers a thread has of a pixel at once; MOVED, those of them
// that one instruction moves: all, but where a pixel is a single thread's; LANES, a power of 2;
// PACKS, how often a lane moves them for a pixel, or 0 where that is so often that new values are
// computed a second time rather than kept; RMS, the norm; ACTIVATE (common.cuh); and OPERATION,
// below, of which APPLY has a FUNCTION: an expression of x, y, z and s. With ALL (common.cuh), all
// pixels are computed, and written without being compared.
#include "common.cuh"
#include "parts.cuh"

#define PARTS 0       // the sums that convolution.cu left, bias, residual
#define MAXIMUM 1     // of the taps
#define MEAN 2        // of the taps
#define DEPTHWISE 3   // taps times a filter a channel, bias, residual
#define COMBINE 4     // alpha x + beta y + gamma, or x y
#define PICK 5        // a channel of an input, by table: cat, select, pad, shuffles
#define AFFINE 6      // x times a number a channel, plus another
#define SOFTMAX 7     // over the channels
#define CHANNEL_MEAN 8
#define GIVEN 9       // what PyTorch computed for the whole map, bias, residual
#define WEIGH 10      // the sum of the taps, each times its row's and its column's weight
#define APPLY 11      // a function of up to three maps and numbers
#define NORM 12       // of a pixel's channels: less their mean or not, over their spread

constexpr int MOST_SOURCES = 8;

struct Source {
    const Number* data;
    const int* rows;  // [height_out, taps_y], as in masks.cu; null: each pixel its own place
    const int* cols;
    int step, height, width, taps_y, taps_x;
    int channels;  // 1: broadcasts over the channels
    int one_lane;  // broadcasts over the lanes
    int unused;
};

struct PixelArgs {
    Rule rule;
    Number* output;
    const Number* residual;
    const int* list;
    const int* counts;     // one a phase
    const float* weight;   // DEPTHWISE [taps, channels]; AFFINE [channels]; NORM the same, or null;
                           // WEIGH [height_out, taps_y], and behind it [width_out, taps_x]
    const float* bias;     // [channels] or null
    const int* table;      // PICK: [channels, 2], source and channel of it (-1: none)
    const float* divisors; // MEAN: [height_out] and [width_out], whose product divides
    const float* parts;
    const Phase* phases;
    int step_out, step_residual, height, width;
    int phase_count;
    int product;  // COMBINE: which of the two; PICK: the table tells the tap of one source; NORM:
                  // less the mean
    float alpha, beta, gamma;  // PICK: gamma where there is nothing; NORM: alpha is added to the
                               // mean square; APPLY: x, y and z where they are no maps, and s:
    float setting;
    int factor;  // PICK: the place in a square of so many pixels is added to the channel
    // PARTS: rows and columns of all sums are in whole tiles of part_rows and part_cols; a group
    // has part_width columns for its part_group channels; part_grid blocks computed the sums.
    int part_rows, part_cols, part_group, part_width, part_step, part_grid;
    int pixels;  // of the output
    Source source[MOST_SOURCES];
};

typedef Pack<Number, OUT_VEC, MOVED> OutPack;

constexpr int PIXELS = WARP / LANES, STEP = LANES * OUT_VEC;
// How many blocks have registers to be resident, and packs that are asked for together.
constexpr bool MANY_REGISTERS =
    OPERATION == PARTS || OPERATION == MAXIMUM || OPERATION == MEAN || OPERATION == DEPTHWISE
    || OPERATION == WEIGH || OPERATION == NORM;
constexpr bool MANY_NUMBERS =  // what is moved alone has a register for itself
    OUT_VEC / MOVED * (MOVED * sizeof(Number) < 4 ? 4 : MOVED * sizeof(Number)) > 16;
constexpr int THREADS = 256, BLOCKS = PACKS > 2 || (MANY_NUMBERS && MANY_REGISTERS) ? 2
                                    : PACKS == 2 || MANY_NUMBERS || MANY_REGISTERS ? 3 : 4;
constexpr int CHUNK = PACKS > 4 ? 1 : PACKS > 2 ? 2 : PACKS;

// Where a group of lanes is.
struct Place {
    long long pixel;  // -1: behind the last
    int lane, y, x;
    long long part, part_split;  // PARTS: the row of sums, and what is between its splits
    int splits;
};

__device__ __forceinline__ const Number* tap(const PixelArgs& args, int s, const Place& at, int i,
                                             int j) {
    const Source& from = args.source[s];
    if (!from.rows)
        return from.data + (from.one_lane ? at.pixel % args.rule.plane : at.pixel) * from.step;
    const int row = from.rows[at.y * from.taps_y + i], col = from.cols[at.x * from.taps_x + j];
    if (row < 0 || col < 0) return nullptr;
    const long long lane = from.one_lane ? 0 : at.lane;
    return from.data + ((lane * from.height + row) * from.width + col) * from.step;
}

__device__ __forceinline__ void read(const Number* from, int channels, int c, float (&x)[OUT_VEC]) {
    if (from && channels > 1) {
        const OutPack pack = *reinterpret_cast<const OutPack*>(from + c);
        UNROLL
        for (int v = 0; v < OUT_VEC; ++v) x[v] = to_float(pack.at[v]);
    } else {
        UNROLL
        for (int v = 0; v < OUT_VEC; ++v) x[v] = from ? to_float(*from) : 0.f;
    }
}

// Numbers of a table of [.., channels], where channels are a multiple of OUT_VEC.
__device__ __forceinline__ void read_floats(const float* from, float (&x)[OUT_VEC]) {
    constexpr int WIDTH = OUT_VEC % 4 == 0 ? 4 : OUT_VEC % 2 == 0 ? 2 : 1;
    typedef Pack<float, WIDTH> Some;
    UNROLL
    for (int v = 0; v < OUT_VEC; v += WIDTH) {
        const Some some = *reinterpret_cast<const Some*>(from + v);
        UNROLL
        for (int i = 0; i < WIDTH; ++i) x[v + i] = some.at[i];
    }
}

constexpr int TOGETHER = 4;  // taps that are asked for before any of them is waited for

// Calls `use(i, j, y)` with channels c to c + OUT_VEC of each tap of the source that is there.
template <typename Use>
__device__ __forceinline__ void for_taps(const PixelArgs& args, const Place& at, int c, Use use) {
    const Source& from = args.source[0];
    if (!from.rows) {  // the pixel's own place alone
        float y[OUT_VEC];
        read(tap(args, 0, at, 0, 0), 2, c, y);
        use(0, 0, y);
        return;
    }
    const int* rows = from.rows + at.y * from.taps_y;
    const int* cols = from.cols + at.x * from.taps_x;
    const int taps_x = from.taps_x;
    const Number* map = from.data + static_cast<long long>(at.lane) * from.height * from.width
                                    * from.step + c;
    NO_UNROLL
    for (int i = 0; i < from.taps_y; ++i) {
        const int row = rows[i];
        if (row < 0) continue;
        const Number* line = map + static_cast<long long>(row) * from.width * from.step;
        NO_UNROLL
        for (int first = 0; first < taps_x; first += TOGETHER) {
            int col[TOGETHER];
            OutPack packs[TOGETHER];
            UNROLL
            for (int k = 0; k < TOGETHER; ++k) col[k] = first + k < taps_x ? cols[first + k] : -1;
            UNROLL
            for (int k = 0; k < TOGETHER; ++k)
                if (col[k] >= 0)
                    packs[k] = *reinterpret_cast<const OutPack*>(line + col[k] * from.step);
            UNROLL
            for (int k = 0; k < TOGETHER; ++k) {
                if (col[k] < 0) continue;
                float y[OUT_VEC];
                UNROLL
                for (int v = 0; v < OUT_VEC; ++v) y[v] = to_float(packs[k].at[v]);
                use(i, first + k, y);
            }
        }
    }
}

#if OPERATION == APPLY
__device__ __forceinline__ float function_of(float x, float y, float z, float s) {
    return FUNCTION;
}
#endif

// Reads an argument that is a map, or a number.
__device__ __forceinline__ void operand(const PixelArgs& args, int s, const Place& at, int c,
                                        float number, float (&x)[OUT_VEC]) {
    if (args.source[s].data) {
        read(tap(args, s, at, 0, 0), args.source[s].channels, c, x);
    } else {
        UNROLL
        for (int v = 0; v < OUT_VEC; ++v) x[v] = number;
    }
}

// Computes channels c to c + OUT_VEC of a pixel.
__device__ __forceinline__ void compute(const PixelArgs& args, const Place& at, int c,
                                        float (&x)[OUT_VEC]) {
#if OPERATION == PARTS
    const long long column = c / args.part_group * args.part_width + c % args.part_group;
    const float* from = args.parts + at.part * args.part_step + column;
    UNROLL
    for (int v = 0; v < OUT_VEC; ++v) x[v] = 0.f;
    UNROLL_BY_4
    for (int split = 0; split < at.splits; ++split) {
        const Pack<float, OUT_VEC> pack =
            *reinterpret_cast<const Pack<float, OUT_VEC>*>(from + split * at.part_split);
        UNROLL
        for (int v = 0; v < OUT_VEC; ++v) x[v] += pack.at[v];
    }
#elif OPERATION == MAXIMUM || OPERATION == MEAN
    UNROLL
    for (int v = 0; v < OUT_VEC; ++v) x[v] = OPERATION == MAXIMUM ? -INFINITE : 0.f;
    for_taps(args, at, c, [&](int, int, const float (&y)[OUT_VEC]) {
        UNROLL
        for (int v = 0; v < OUT_VEC; ++v) {
            if (OPERATION == MEAN) x[v] += y[v];
            else x[v] = y[v] > x[v] || y[v] != y[v] ? y[v] : x[v];  // NaN stays
        }
    });
    if (OPERATION == MEAN) {
        const float divisor = args.divisors[at.y] * args.divisors[args.height + at.x];
        UNROLL
        for (int v = 0; v < OUT_VEC; ++v) x[v] /= divisor;
    }
#elif OPERATION == DEPTHWISE
    UNROLL
    for (int v = 0; v < OUT_VEC; ++v) x[v] = 0.f;
    for_taps(args, at, c, [&](int i, int j, const float (&y)[OUT_VEC]) {
        const int first = (i * args.source[0].taps_x + j) * args.rule.channels + c;
        float weight[OUT_VEC];
        read_floats(args.weight + first, weight);
        UNROLL
        for (int v = 0; v < OUT_VEC; ++v) x[v] += y[v] * weight[v];
    });
#elif OPERATION == WEIGH
    const float* down = args.weight + at.y * args.source[0].taps_y;
    const float* across = args.weight + args.height * args.source[0].taps_y
                          + at.x * args.source[0].taps_x;
    UNROLL
    for (int v = 0; v < OUT_VEC; ++v) x[v] = 0.f;
    for_taps(args, at, c, [&](int i, int j, const float (&y)[OUT_VEC]) {
        UNROLL
        for (int v = 0; v < OUT_VEC; ++v) x[v] += y[v] * (down[i] * across[j]);
    });
#elif OPERATION == COMBINE
    float y[OUT_VEC];
    read(tap(args, 0, at, 0, 0), args.source[0].channels, c, x);
    read(args.source[1].data ? tap(args, 1, at, 0, 0) : nullptr, args.source[1].channels, c, y);
    UNROLL
    for (int v = 0; v < OUT_VEC; ++v)
        x[v] = args.product ? x[v] * y[v] : args.alpha * x[v] + args.beta * y[v] + args.gamma;
#elif OPERATION == PICK
    UNROLL
    for (int v = 0; v < OUT_VEC; ++v) {
        const int which = args.table[2 * (c + v)], channel = args.table[2 * (c + v) + 1];
        const int columns = args.source[0].taps_x;
        const Number* place = args.product ? tap(args, 0, at, which / columns, which % columns)
                                           : tap(args, which, at, 0, 0);
        const int shift = at.y % args.factor * args.factor + at.x % args.factor;
        x[v] = place && channel >= 0 ? to_float(place[channel + shift]) : args.gamma;
    }
#elif OPERATION == APPLY
    float y[OUT_VEC], z[OUT_VEC];
    operand(args, 0, at, c, args.alpha, x);
    operand(args, 1, at, c, args.beta, y);
    operand(args, 2, at, c, args.gamma, z);
    UNROLL
    for (int v = 0; v < OUT_VEC; ++v) x[v] = function_of(x[v], y[v], z[v], args.setting);
#elif OPERATION == AFFINE
    read(tap(args, 0, at, 0, 0), 2, c, x);
    UNROLL
    for (int v = 0; v < OUT_VEC; ++v) x[v] *= args.weight[c + v];
#else
    read(tap(args, 0, at, 0, 0), 2, c, x);
#endif
}

// What needs all channels of a pixel before any of them is known: the largest number and the sum of
// exponentials, the sum, or the mean and one over the spread.
struct Summary { float center, total; };

__device__ __forceinline__ Summary summarize(const PixelArgs& args, const Place& at) {
    Summary all = {OPERATION == NORM ? 0.f : -INFINITE, 0.f};
#if OPERATION == SOFTMAX || OPERATION == CHANNEL_MEAN
    const int channels = at.pixel < 0 ? 0 : args.source[0].channels;
    const Number* place = at.pixel < 0 ? nullptr : tap(args, 0, at, 0, 0);
    for (int c = threadIdx.x % LANES; c < channels; c += LANES) {
        all.center = fmaxf(all.center, to_float(place[c]));
        if (OPERATION == CHANNEL_MEAN) all.total += to_float(place[c]);
    }
    all.center = group_max<LANES>(all.center);
    if (OPERATION == SOFTMAX)
        for (int c = threadIdx.x % LANES; c < channels; c += LANES)
            all.total += expf(to_float(place[c]) - all.center);
    all.total = group_sum<LANES>(all.total);
#elif OPERATION == NORM
    const int first = threadIdx.x % LANES * OUT_VEC;
    const int channels = at.pixel < 0 ? 0 : args.rule.channels;
    const Number* place = at.pixel < 0 ? nullptr : tap(args, 0, at, 0, 0);
    for (int turn = args.product ? 0 : 1; turn < 2; ++turn) {  // the mean, then the spread
        float sum = 0.f;
        for (int c = first; c < channels; c += STEP) {
            float x[OUT_VEC];
            read(place, 2, c, x);
            UNROLL
            for (int v = 0; v < OUT_VEC; ++v) {
                const float d = x[v] - all.center;
                sum += turn == 0 ? x[v] : d * d;
            }
        }
        sum = group_sum<LANES>(sum) / args.rule.channels;
        if (turn == 0) all.center = sum;
        else all.total = 1.f / sqrtf(sum + args.alpha);
    }
#endif
    return all;
}

// Packs of a pixel that lie at its own place, which are known before anything is computed.
struct Asked { OutPack old, added, given; };

// Asks for packs from channel `first` on, all at once, before any of them is waited for.
template <int COUNT>
__device__ __forceinline__ void ask(const PixelArgs& args, const Place& at, int first, int channels,
                                    Asked (&asked)[COUNT]) {
    const Number* old = args.output + at.pixel * args.step_out;
    const Number* given = args.source[0].data + at.pixel * args.source[0].step;
    const Number* added = args.residual + at.pixel * args.step_residual;
    UNROLL
    for (int i = 0; i < COUNT; ++i) {
        const int c = first + i * STEP;
        if (c >= channels) continue;
        if (!ALL) asked[i].old = *reinterpret_cast<const OutPack*>(old + c);
        if (OPERATION == GIVEN) asked[i].given = *reinterpret_cast<const OutPack*>(given + c);
    }
    if (!args.residual) return;
    UNROLL
    for (int i = 0; i < COUNT; ++i)
        if (first + i * STEP < channels)
            asked[i].added = *reinterpret_cast<const OutPack*>(added + first + i * STEP);
}

// The new values of some channels, all that is fused included.
__device__ __forceinline__ void evaluate(const PixelArgs& args, const Place& at, const Summary& all,
                                         int c, const Asked& asked, OutPack& now) {
    float x[OUT_VEC];
    if (OPERATION == CHANNEL_MEAN) {
        UNROLL
        for (int v = 0; v < OUT_VEC; ++v) x[v] = all.total / args.source[0].channels;
    } else if (OPERATION == GIVEN) {
        UNROLL
        for (int v = 0; v < OUT_VEC; ++v) x[v] = to_float(asked.given.at[v]);
    } else {
        compute(args, at, c, x);
    }
    if (OPERATION == NORM) {
        float weight[OUT_VEC];
        if (args.weight) read_floats(args.weight + c, weight);
        UNROLL
        for (int v = 0; v < OUT_VEC; ++v)
            x[v] = (x[v] - all.center) * all.total * (args.weight ? weight[v] : 1.f);
    }
    if (OPERATION == SOFTMAX) {
        UNROLL
        for (int v = 0; v < OUT_VEC; ++v) x[v] = expf(x[v] - all.center) / all.total;
    }
    if (args.bias) {
        float bias[OUT_VEC];
        read_floats(args.bias + c, bias);
        UNROLL
        for (int v = 0; v < OUT_VEC; ++v) x[v] += bias[v];
    }
    if (args.residual) {
        UNROLL
        for (int v = 0; v < OUT_VEC; ++v) x[v] += to_float(asked.added.at[v]);
    }
    UNROLL
    for (int v = 0; v < OUT_VEC; ++v)
        from_float(activate(x[v], args.rule), now.at[v]);
}

__device__ __forceinline__ float difference(const OutPack& now, const OutPack& old,
                                            float threshold) {
    float sum = 0.f;
    UNROLL
    for (int v = 0; v < OUT_VEC; ++v)
        sum += score(to_float(now.at[v]), to_float(old.at[v]), threshold, RMS);
    return sum;
}

// Computes one pixel and applies the rule; returns whether it changed. All lanes of a warp come
// here, also those whose pixel is behind the last.
__device__ __forceinline__ bool compute_pixel(const PixelArgs& args, const Place& at) {
    const bool exists = at.pixel >= 0;
    const int first = threadIdx.x % LANES * OUT_VEC, channels = exists ? args.rule.channels : 0;
    const float threshold = args.rule.thresholds[at.lane];
    const int fresh = args.rule.fresh[at.lane];
    Number* output = args.output + at.pixel * args.step_out;
    const Summary all = summarize(args, at);
    float sum = 0.f;
#if PACKS
    OutPack now[PACKS];
    UNROLL
    for (int p = 0; p < PACKS; p += CHUNK) {
        Asked asked[CHUNK];
        ask(args, at, first + p * STEP, channels, asked);
        UNROLL
        for (int i = 0; i < CHUNK && p + i < PACKS; ++i) {
            const int c = first + (p + i) * STEP;
            if (c >= channels) continue;
            evaluate(args, at, all, c, asked[i], now[p + i]);
            sum += difference(now[p + i], asked[i].old, threshold);
        }
    }
#else
    for (int c = first; c < channels; c += STEP) {
        OutPack now;
        Asked asked[1];
        ask(args, at, c, channels, asked);
        evaluate(args, at, all, c, asked[0], now);
        sum += difference(now, asked[0].old, threshold);
    }
#endif
    sum = group_sum<LANES>(sum);
    if (!exists || (!fresh && !exceeds(sum, args.rule, threshold))) return false;
#if PACKS
    UNROLL
    for (int p = 0; p < PACKS; ++p)
        if (first + p * STEP < channels)
            *reinterpret_cast<OutPack*>(output + first + p * STEP) = now[p];
#else
    for (int c = first; c < channels; c += STEP) {
        OutPack now;
        Asked asked[1];
        ask(args, at, c, channels, asked);
        evaluate(args, at, all, c, asked[0], now);
        *reinterpret_cast<OutPack*>(output + c) = now;
    }
#endif
    if (threadIdx.x % LANES == 0) mark(args.rule, static_cast<int>(at.pixel));
    return true;
}

// Computes one pixel and writes it. All lanes of a warp come here.
__device__ __forceinline__ void write_pixel(const PixelArgs& args, const Place& at) {
    constexpr int COUNT = CHUNK ? CHUNK : 1;
    const int channels = at.pixel < 0 ? 0 : args.rule.channels;
    const Summary all = summarize(args, at);
    NO_UNROLL
    for (int first = threadIdx.x % LANES * OUT_VEC; first < channels; first += COUNT * STEP) {
        Asked asked[COUNT];
        ask(args, at, first, channels, asked);
        UNROLL
        for (int i = 0; i < COUNT; ++i) {
            const int c = first + i * STEP;
            if (c >= channels) continue;
            OutPack now;
            evaluate(args, at, all, c, asked[i], now);
            *reinterpret_cast<OutPack*>(args.output + at.pixel * args.step_out + c) = now;
        }
    }
}

__device__ __forceinline__ Place place_of(const PixelArgs& args, int pixel) {
    Place at = {};
    at.pixel = pixel;
    if (pixel < 0) return at;
    at.lane = pixel / args.rule.plane;
    if (OPERATION == PARTS || OPERATION == GIVEN) return at;
    at.y = pixel / args.width % args.height;
    at.x = pixel % args.width;
    return at;
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) compute_pixels(PixelArgs args) {
    wait_for_earlier_kernels();
    let_next_kernel_begin();
    const int warp = threadIdx.x / WARP, warps = blockDim.x / WARP, lane_id = threadIdx.x % WARP;
    // What changed is listed all LANES turns: then each lane knows of one pixel. Where that is each
    // turn and nobody wants the list, it is counted, and told once.
    int mine = 0, turn = 0, counted = 0;
    bool changed = false;
    for (int f = 0; f < args.phase_count; ++f) {
        const int count = ALL ? args.pixels : args.counts[f];
        int base = 0, tiles = 0, splits = 1;
        if (OPERATION == PARTS) {
            const Phase phase = args.phases[f];
            if (count == 0) continue;
            base = phase.list;
            tiles = ceil_div(count, args.part_rows);
            splits = splits_of(tiles * (args.part_step / args.part_cols), args.part_grid,
                               args.phase_count == 1 ? phase.stages : 1);
        }
        // Few candidates are spread over many multiprocessors, a warp on each.
        const int step = gridDim.x * warps * PIXELS;
        int start = (warp * gridDim.x + blockIdx.x) * PIXELS;
        int i = start + lane_id / LANES;
        int pixel = i < count ? ALL ? i : args.list[base + i] : -1;
        NO_UNROLL
        for (; start < count; start += step) {
            Place at = place_of(args, pixel);
            at.splits = splits;
            at.part = base + f * args.part_rows + i;
            at.part_split = static_cast<long long>(tiles) * args.part_rows * args.part_step;
            i += step;
            pixel = i < count ? ALL ? i : args.list[base + i] : -1;  // before it is needed
            if (ALL) {
                write_pixel(args, at);
                continue;
            }
            const bool moved = compute_pixel(args, at);
            if (lane_id % LANES == turn) {
                mine = static_cast<int>(at.pixel);
                changed = moved;
            }
            if (++turn < LANES) continue;
            if (LANES > 1 || args.rule.list) list_changes(args.rule, changed, mine);
            else counted += count_bits(ballot(changed));
            turn = 0;
            changed = false;
        }
    }
    if (ALL) return;
    if (LANES > 1 || args.rule.list) list_changes(args.rule, changed, mine);
    else counted += count_bits(ballot(changed));
    if (lane_id == 0 && counted) atomicAdd(args.rule.changed, counted);
}
