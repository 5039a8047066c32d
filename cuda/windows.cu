// Attention within windows, of those in which a pixel changed: `find_windows` lists them and their
// pixels, and `attend_windows` computes them, a block for the tokens of one window and head. Every
// pixel belongs to one window, wherever windows are shifted to.
//
// Specialised on NUMBER; TENSOR, 16-bit numbers on tensor cores, or sums of float32; and VEC, the
// numbers that are copied at once.
#include "whole.cuh"

constexpr int HEAD = 32, MOST_TOKENS = 64;  // channels of a head, tokens of a window
constexpr int THREADS = 128, THREADS_OF_LIST = 256, BLOCKS = TENSOR ? 4 : 3;

struct WindowArgs {
    Rule rule;                // of the output
    Changes inputs;
    const byte* mask;         // of the input
    const Number* input;      // queries, keys and values, each `channels`
    const Number* bias;       // [3, channels] or null; a token that pads the map is nothing else
    const float* position;    // [heads, tokens, tokens]
    const float* scales;      // [heads]: of the products
    Number* given;            // the new map, without gaps
    int* list;                // pixels of the output
    int* windows;             // windows, all lanes'
    int* counts;              // pixels in the list; windows
    int lanes, height, width, step, channels, heads;
    int rows, cols;           // of a window
    int down, across;         // windows of a lane
    int shift_y, shift_x;
    int cosines;              // queries and keys are brought to length 1
    int unused;
};

// A token's place.
struct Token {
    long long pixel;  // -1: it pads the map, or the window has fewer tokens
    int part;         // tokens of different parts are no neighbours in the map
};

__device__ __forceinline__ Token token_of(const WindowArgs& args, int window, int token) {
    if (token >= args.rows * args.cols) return {-1, 0};
    const int across = window % args.across, line = window / args.across;
    const int down = line % args.down, lane = line / args.down;
    const int high = args.down * args.rows, wide = args.across * args.cols;  // with what pads
    int y = down * args.rows + token / args.cols, x = across * args.cols + token % args.cols;
    const int part = 2 * (y >= high - args.shift_y) + (x >= wide - args.shift_x);
    y += args.shift_y;
    x += args.shift_x;
    if (y >= high) y -= high;
    if (x >= wide) x -= wide;
    if (y >= args.height || x >= args.width) return {-1, part};
    return {(static_cast<long long>(lane) * args.height + y) * args.width + x, part};
}

// A warp a window.
extern "C" __global__ void __launch_bounds__(THREADS_OF_LIST) find_windows(WindowArgs args) {
    wait_for_earlier_kernels();
    let_next_kernel_begin();
    const int in_warp = threadIdx.x % WARP, of_lane = args.down * args.across;
    const int warps = gridDim.x * (THREADS_OF_LIST / WARP);
    if (!needed(args.inputs, args.rule.fresh[args.lanes])) return;
    NO_UNROLL
    for (int window = blockIdx.x * (THREADS_OF_LIST / WARP) + threadIdx.x / WARP;
         window < args.lanes * of_lane; window += warps) {
        const long long one = token_of(args, window, in_warp).pixel;
        const long long other = token_of(args, window, WARP + in_warp).pixel;
        const bool set = args.rule.fresh[window / of_lane] || (one >= 0 && args.mask[one])
                         || (other >= 0 && args.mask[other]);
        if (!ballot(set)) continue;
        const unsigned first = ballot(one >= 0), second = ballot(other >= 0);
        const unsigned before = (1u << in_warp) - 1u;
        const int pixels = count_bits(first) + count_bits(second);
        const int start = broadcast(in_warp == 0 ? atomicAdd(args.counts, pixels) : 0);
        if (one >= 0) args.list[start + count_bits(first & before)] = static_cast<int>(one);
        if (other >= 0)
            args.list[start + count_bits(first) + count_bits(second & before)] =
                static_cast<int>(other);
        if (in_warp == 0) args.windows[atomicAdd(args.counts + 1, 1)] = window;
    }
}

constexpr int PAD = 16 / sizeof(Number), ROW = HEAD + PAD;  // numbers of a token in shared memory
typedef Pack<Number, VEC> InPack;

struct Shared {
    Number rows[3][MOST_TOKENS][ROW];  // queries, keys, values
    int part[MOST_TOKENS];             // -1: there is no such token
    long long pixel[MOST_TOKENS];
};

// Copies a head's queries, keys and values, with their bias.
__device__ __forceinline__ void load(const WindowArgs& args, Shared& shared, int window, int head) {
    const int tokens = args.rows * args.cols;
    if (threadIdx.x < MOST_TOKENS) {
        const Token token = token_of(args, window, threadIdx.x);
        shared.pixel[threadIdx.x] = token.pixel;
        shared.part[threadIdx.x] = threadIdx.x < tokens ? token.part : -1;
    }
    block_barrier();
    constexpr int PACKS = HEAD / VEC;
    UNROLL_BY_4
    for (int i = threadIdx.x; i < 3 * MOST_TOKENS * PACKS; i += THREADS) {
        const int which = i / (MOST_TOKENS * PACKS), token = i / PACKS % MOST_TOKENS;
        const int c = which * args.channels + head * HEAD + i % PACKS * VEC;
        const long long pixel = shared.pixel[token];
        InPack pack = {};
        if (pixel >= 0) pack = *reinterpret_cast<const InPack*>(args.input + pixel * args.step + c);
        if (args.bias && token < tokens) {
            const InPack bias = *reinterpret_cast<const InPack*>(args.bias + c);
            UNROLL
            for (int v = 0; v < VEC; ++v)
                from_float(to_float(pack.at[v]) + to_float(bias.at[v]), pack.at[v]);
        }
        *reinterpret_cast<InPack*>(&shared.rows[which][token][i % PACKS * VEC]) = pack;
    }
    block_barrier();
    if (!args.cosines) return;
    Number* row = shared.rows[threadIdx.x / MOST_TOKENS][threadIdx.x % MOST_TOKENS];
    float sum = 0.f;
    UNROLL
    for (int c = 0; c < HEAD; ++c) sum += to_float(row[c]) * to_float(row[c]);
    Number length;  // rounded, and of float16 0 for no length: NaN as in the model
    from_float(sum < 1e-24f ? 1e-12f : sqrtf(sum), length);
    UNROLL
    for (int c = 0; c < HEAD; ++c) from_float(to_float(row[c]) / to_float(length), row[c]);
    block_barrier();
}

constexpr float APART = -100.f;  // as in window_attention.py

// A score, from the product of a query and a key, for tokens that are there.
__device__ __forceinline__ float weigh(const WindowArgs& args, const Shared& shared, int head,
                                       int query, int key, float product) {
    const int tokens = args.rows * args.cols;
    if (key >= tokens) return -INFINITE;
    if (query >= tokens) return 0.f;
    const float apart = shared.part[query] == shared.part[key] ? 0.f : APART;
    return product * args.scales[head] + args.position[(head * tokens + query) * tokens + key]
           + apart;
}

#if TENSOR

// A warp has 16 queries. Of a product of 16x8 a thread holds two neighbours in each of two rows, 8
// apart.
__device__ __forceinline__ void attend(const WindowArgs& args, const Shared& shared, int head) {
    const int lane = threadIdx.x % WARP, first = threadIdx.x / WARP * 16;
    float scores[MOST_TOKENS / 8][4] = {};
    UNROLL
    for (int k = 0; k < HEAD; k += 16) {
        unsigned left[4];
        load_matrices(left, &shared.rows[0][first + lane % 16][k + lane / 16 * 8]);
        UNROLL
        for (int j = 0; j < MOST_TOKENS / 16; ++j) {
            unsigned right[4];  // keys j * 16 to + 8 and behind, numbers k to + 8 and behind
            load_matrices(right, &shared.rows[1][j * 16 + lane / 16 * 8 + lane % 8]
                                             [k + lane / 8 % 2 * 8]);
            multiply(Number(), scores[2 * j], left, right);
            multiply(Number(), scores[2 * j + 1], left, right + 2);
        }
    }
    float largest[2] = {-INFINITE, -INFINITE}, total[2] = {0.f, 0.f};
    UNROLL
    for (int j = 0; j < MOST_TOKENS / 8; ++j) {
        UNROLL
        for (int i = 0; i < 4; ++i) {
            const int query = first + lane / 4 + i / 2 * 8, key = j * 8 + lane % 4 * 2 + i % 2;
            scores[j][i] = weigh(args, shared, head, query, key, scores[j][i]);
            largest[i / 2] = fmaxf(largest[i / 2], scores[j][i]);
        }
    }
    UNROLL
    for (int half = 0; half < 2; ++half) {  // over the four threads that share a row
        largest[half] = fmaxf(largest[half], shuffle_xor(largest[half], 1));
        largest[half] = fmaxf(largest[half], shuffle_xor(largest[half], 2));
    }
    float sums[HEAD / 8][4] = {};
    UNROLL
    for (int j = 0; j < MOST_TOKENS / 16; ++j) {
        unsigned left[4];  // weights, as bits: sums of one product are operands of the next
        UNROLL
        for (int part = 0; part < 4; ++part) {
            Pack<Number, 2> pair;
            UNROLL
            for (int i = 0; i < 2; ++i) {
                const float weight = expf(scores[2 * j + part / 2][part % 2 * 2 + i]
                                          - largest[part % 2]);
                total[part % 2] += weight;
                from_float(weight, pair.at[i]);
            }
            left[part] = pair.at[0].bits | static_cast<unsigned>(pair.at[1].bits) << 16;
        }
        UNROLL
        for (int c = 0; c < HEAD; c += 16) {
            unsigned right[4];
            load_matrices_transposed(right, &shared.rows[2][j * 16 + lane % 16][c + lane / 16 * 8]);
            multiply(Number(), sums[c / 8], left, right);
            multiply(Number(), sums[c / 8 + 1], left, right + 2);
        }
    }
    UNROLL
    for (int half = 0; half < 2; ++half) {
        total[half] += shuffle_xor(total[half], 1);
        total[half] += shuffle_xor(total[half], 2);
        const long long pixel = shared.pixel[first + lane / 4 + half * 8];
        if (pixel < 0) continue;
        Number* to = args.given + pixel * args.channels + head * HEAD + lane % 4 * 2;
        UNROLL
        for (int c = 0; c < HEAD / 8; ++c) {
            Pack<Number, 2> pair;
            UNROLL
            for (int i = 0; i < 2; ++i)
                from_float(sums[c][2 * half + i] / total[half], pair.at[i]);
            *reinterpret_cast<Pack<Number, 2>*>(to + c * 8) = pair;
        }
    }
}

#else

// Two threads have a query, each half of the keys.
__device__ __forceinline__ void attend(const WindowArgs& args, const Shared& shared, int head) {
    constexpr int KEYS = MOST_TOKENS / 2;
    const int query = threadIdx.x / 2, first = threadIdx.x % 2 * KEYS;
    float scores[KEYS], largest = -INFINITE, total = 0.f;
    {
        float mine[HEAD];
        UNROLL
        for (int c = 0; c < HEAD; ++c) mine[c] = to_float(shared.rows[0][query][c]);
        UNROLL
        for (int k = 0; k < KEYS; ++k) {
            float product = 0.f;
            UNROLL
            for (int c = 0; c < HEAD; ++c)
                product += mine[c] * to_float(shared.rows[1][first + k][c]);
            scores[k] = weigh(args, shared, head, query, first + k, product);
            largest = fmaxf(largest, scores[k]);
        }
    }
    largest = fmaxf(largest, shuffle_xor(largest, 1));
    UNROLL
    for (int k = 0; k < KEYS; ++k) {
        scores[k] = expf(scores[k] - largest);
        total += scores[k];
    }
    total += shuffle_xor(total, 1);
    const long long pixel = shared.pixel[query];
    Number* to = args.given + pixel * args.channels + head * HEAD;
    UNROLL
    for (int c = 0; c < HEAD; ++c) {
        float sum = 0.f;
        UNROLL
        for (int k = 0; k < KEYS; ++k) sum += scores[k] * to_float(shared.rows[2][first + k][c]);
        sum += shuffle_xor(sum, 1);
        if (pixel >= 0 && c % 2 == threadIdx.x % 2) from_float(sum / total, to[c]);
    }
}

#endif

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) attend_windows(WindowArgs args) {
    SHARED_MEMORY(memory);
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    wait_for_earlier_kernels();
    let_next_kernel_begin();
    const int count = args.counts[1] * args.heads;
    NO_UNROLL
    for (int i = blockIdx.x; i < count; i += gridDim.x) {
        const int head = i % args.heads;
        load(args, shared, args.windows[i / args.heads], head);
        attend(args, shared, head);
        block_barrier();  // before the next ones take their place
    }
}
