// Update masks and what follows from them: candidates, unions, the frame's begin and end.
#include "common.cuh"
#include "work.cuh"

constexpr int MOST_SOURCES = 8;

// What output pixels read of a map: by tables, rows is [height_out, taps_y], cols [width_out,
// taps_x], input indices or -1 for a tap that is not there; or what those tables are for a
// window: tap t of row y is row first_y + y * step_y + t * spread_y, where the map has it. ONE: all
// read the only pixel of the lane. STRIPS: rows by table, columns as each strip knows them. SAME: a
// pixel reads its own place. PATCHES: a window whose taps are neighbours, of any width; all threads
// of a warp look at a strip.
enum Reads { TAPS, WINDOW, EVERYTHING, ONE, STRIPS, SAME, PATCHES };

constexpr int THREADS = 256;
constexpr int STRIP = 8;  // neighbouring output pixels of a row, which a thread looks at together

// Which columns a strip's pixels read, where those are near each other.
struct StripReads {
    int first, span;
    int unused[2];
    unsigned long long bits[STRIP];  // of the columns from the first on, for a pixel each
};

struct MaskSource {
    const byte* mask;
    const int* changed;
    const int* rows;
    const void* cols;  // of a table's numbers, or of StripReads
    int height, width, taps_y, taps_x;
    int reads;  // how, see Reads
    int first_y, first_x, step_y, step_x, spread_y, spread_x;
    int unused;
};

struct CandidateArgs {
    const int* fresh;  // as in Rule
    int* list;         // pixels, a phase behind the other
    int* counts;       // one a phase
    byte* mask;        // of the union; null where a list is made
    int lanes, height, width;
    int period_y, period_x;  // phases of a transposed convolution; 1, 1 for anything else
    int sources;
    int together, unused;  // 1: all threads of a warp look at a strip
    MaskSource source[MOST_SOURCES];
};

struct Strip { int lane, y, x, step, pixels; };

constexpr int WORDS = 4, CHUNK = 4 * WORDS;  // words that are asked for together, and their pixels

// The bytes of a mask from `at` on, of which each is 0 or 1, as a bit each; `count` up to 60.
// What is behind the mask's end is read as far as the next multiple of 4.
__device__ __forceinline__ unsigned long long bits_of(const byte* mask, int at, int count,
                                                      int total) {
    const int ahead = at & 3, start = at - ahead;
    unsigned long long bits = 0;
    NO_UNROLL
    for (int first = 0; first < ahead + count; first += CHUNK) {
        unsigned words[WORDS], chunk = 0;
        UNROLL
        for (int w = 0; w < WORDS; ++w) {
            const int place = start + first + 4 * w;
            const bool exists = place >= 0 && place < total && first + 4 * w < ahead + count;
            words[w] = exists ? *reinterpret_cast<const unsigned*>(mask + place) : 0;
        }
        UNROLL
        for (int w = 0; w < WORDS; ++w)
            chunk |= ((words[w] * 0x01020408u) >> 24 & 15u) << (4 * w);
        bits |= static_cast<unsigned long long>(chunk) << first;
    }
    return bits >> ahead;
}

// Which pixels of the strip read a pixel that is set, a bit each.
__device__ __forceinline__ unsigned found_by_window(const MaskSource& from, const Strip& at) {
    const int left = from.first_x + at.x * from.step_x;
    const int span = (STRIP - 1) * from.step_x + (from.taps_x - 1) * from.spread_x + 1;
    const int total = from.height * from.width * (at.lane + 1);  // up to this lane's end
    unsigned long long bits = 0;
    NO_UNROLL
    for (int t = 0; t < from.taps_y; ++t) {
        const int row = from.first_y + at.y * from.step_y + t * from.spread_y;
        if (row < 0 || row >= from.height) continue;
        const int start = (at.lane * from.height + row) * from.width;
        bits |= bits_of(from.mask, start + left, span, total);
    }
    if (left < 0) bits = bits >> -left << -left;  // those of other rows
    if (from.width - left < 64) bits &= (1ull << max(from.width - left, 0)) - 1ull;
    unsigned long long reached = 0;
    NO_UNROLL
    for (int t = 0; t < from.taps_x; ++t) reached |= bits >> (t * from.spread_x);
    if (from.step_x == 1) return static_cast<unsigned>(reached);
    unsigned found = 0;
    NO_UNROLL
    for (int k = 0; k < STRIP; ++k)
        found |= static_cast<unsigned>(reached >> (k * from.step_x) & 1ull) << k;
    return found;
}

__device__ __forceinline__ unsigned found_by_tables(const MaskSource& from, const Strip& at) {
    const byte* mask = from.mask + static_cast<long long>(at.lane) * from.height * from.width;
    const int* cols = static_cast<const int*>(from.cols);
    unsigned found = 0;
    NO_UNROLL
    for (int i = 0; i < from.taps_y; ++i) {
        const int row = from.rows[at.y * from.taps_y + i];
        if (row < 0) continue;
        NO_UNROLL
        for (int j = 0; j < from.taps_x; ++j) {
            NO_UNROLL
            for (int k = 0; k < STRIP; ++k) {
                if (k >= at.pixels) continue;
                const int col = cols[(at.x + k * at.step) * from.taps_x + j];
                if (col >= 0 && mask[row * from.width + col]) found |= 1u << k;
            }
        }
    }
    return found;
}

__device__ __forceinline__ unsigned found_by_strips(const MaskSource& from, const Strip& at) {
    const StripReads& reads = static_cast<const StripReads*>(from.cols)[at.x / STRIP];
    const int total = from.height * from.width * (at.lane + 1);  // up to this lane's end
    unsigned long long bits = 0;
    NO_UNROLL
    for (int t = 0; t < from.taps_y; ++t) {
        const int row = from.rows[at.y * from.taps_y + t];
        if (row < 0) continue;
        const int start = (at.lane * from.height + row) * from.width;
        bits |= bits_of(from.mask, start + reads.first, reads.span, total);
    }
    unsigned found = 0;
    if (!bits) return found;
    NO_UNROLL
    for (int k = 0; k < STRIP; ++k) found |= static_cast<unsigned>((bits & reads.bits[k]) != 0) << k;
    return found;
}

// Which pixels of the strip read the bytes of a word that are set: the first is `col` columns
// behind the strip's first, and columns from `first` to before `end` are of this row.
__device__ __forceinline__ unsigned readers_of(unsigned word, int col, int first, int end,
                                               const MaskSource& from, const Strip& at) {
    unsigned found = 0;
    NO_UNROLL
    for (int c = col; word; word >>= 8, ++c) {
        if (!(word & 1u) || c < first || c >= end) continue;
        const int last = min(c / from.step_x, at.pixels - 1);
        const int least = c < from.taps_x ? 0 : (c - from.taps_x) / from.step_x + 1;
        if (least <= last) found |= (2u << last) - (1u << least);
    }
    return found;
}

// By all threads of a warp, which share the words of all rows out; each gets the answer.
__device__ unsigned found_by_patches(const MaskSource& from, const Strip& at) {
    const int left = from.first_x + at.x * from.step_x;
    const int first = max(-left, 0);
    const int end = min((at.pixels - 1) * from.step_x + from.taps_x, from.width - left);
    const int wide = (end - first + 6) / 4, total = end > first ? from.taps_y * wide : 0;
    unsigned found = 0;
    NO_UNROLL
    for (int item = threadIdx.x % WARP; item < total; item += WORDS * WARP) {
        unsigned words[WORDS];
        int cols[WORDS];
        UNROLL
        for (int w = 0; w < WORDS; ++w) {
            const int t = (item + w * WARP) / wide, rest = (item + w * WARP) % wide;
            const int row = from.first_y + at.y * from.step_y + t * from.spread_y;
            const int start = (at.lane * from.height + row) * from.width + left;
            const int place = ((start + first) & ~3) + 4 * rest;
            cols[w] = place - start;
            const bool exists = t < from.taps_y && row >= 0 && row < from.height && cols[w] < end;
            words[w] = exists ? *reinterpret_cast<const unsigned*>(from.mask + place) : 0;
        }
        NO_UNROLL
        for (int w = 0; w < WORDS; ++w)
            if (words[w]) found |= readers_of(words[w], cols[w], first, end, from, at);
    }
    unsigned all = 0;
    UNROLL
    for (int k = 0; k < STRIP; ++k) all |= (ballot(found >> k & 1u) != 0) << k;
    return all;
}

__device__ __forceinline__ unsigned found_in(const MaskSource& from, const Strip& at) {
    if (from.reads == WINDOW) return found_by_window(from, at);
    if (from.reads == SAME)  // with what is behind the row's end, which is no pixel of the strip
        return static_cast<unsigned>(
            bits_of(from.mask, (at.lane * from.height + at.y) * from.width + at.x, STRIP,
                    from.height * from.width * (at.lane + 1)));
    if (from.reads == STRIPS) return found_by_strips(from, at);
    if (from.reads == PATCHES) return found_by_patches(from, at);
    if (from.reads == TAPS) return found_by_tables(from, at);
    if (from.reads == ONE) return from.mask[at.lane] ? ~0u : 0u;
    return *from.changed ? ~0u : 0u;
}

// Shared memory, `LIST_BYTES` in candidates.py.
struct Staged {
    int pixels[THREADS * STRIP];
    int of_warps[2][THREADS / WARP];  // how many each has found, in this round and the last
    int base;
};

// Lists the pixels that the block's strips found, one strip's behind another's: with one answer
// from the counter, and written by neighbours side by side.
__device__ void list_strips(const Strip& at, unsigned found, int first_pixel, Staged& staged,
                            int round, int* list, int* count) {
    const int lane_id = threadIdx.x % WARP, warp = threadIdx.x / WARP, mine = count_bits(found);
    const unsigned before = (1u << lane_id) - 1u;
    int rank = 0, total = 0;
    UNROLL
    for (int bit = 0; bit < 4; ++bit) {  // of `mine`, which is 8 at most
        const unsigned votes = ballot(mine >> bit & 1);
        rank += count_bits(votes & before) << bit;
        total += count_bits(votes) << bit;
    }
    int* of_warps = staged.of_warps[round % 2];
    if (lane_id == 0) of_warps[warp] = total;
    block_barrier();
    int all = 0;
    UNROLL
    for (int w = 0; w < THREADS / WARP; ++w) {
        if (w < warp) rank += of_warps[w];
        all += of_warps[w];
    }
    if (all == 0) return;
    if (threadIdx.x == 0) staged.base = atomicAdd(count, all);
    NO_UNROLL
    for (int k = 0; k < STRIP; ++k)
        if (found >> k & 1u) staged.pixels[rank++] = first_pixel + k * at.step;
    block_barrier();
    NO_UNROLL
    for (int i = threadIdx.x; i < all; i += THREADS) list[staged.base + i] = staged.pixels[i];
}

// What this lane of a warp knows of whether there is anything to do: an input's count each.
__device__ __forceinline__ int work_of_lane(const CandidateArgs& args) {
    const int lane_id = threadIdx.x % WARP;
    if (lane_id < args.sources) return *args.source[lane_id].changed;
    return lane_id == MOST_SOURCES ? args.fresh[args.lanes] : 0;
}

// Lists the output pixels that must be evaluated again, in no particular order but for runs
// within a block. blockIdx.y is the phase.
extern "C" __global__ void __launch_bounds__(THREADS, 4) find_candidates(CandidateArgs args) {
    SHARED_MEMORY(memory);
    wait_for_earlier_kernels();
    let_next_kernel_begin();
    // Asked for before the masks, and used behind them: no answer is waited for twice.
    const int work = work_of_lane(args);
    const int phase = blockIdx.y;
    const int first_y = phase / args.period_x, first_x = phase % args.period_x;
    const int rows = ceil_div(args.height - first_y, args.period_y);
    const int cols = ceil_div(args.width - first_x, args.period_x);
    const int strips = ceil_div(cols, STRIP), total = args.lanes * rows * strips;
    // Where the phase's part of the list begins: behind the pixels of the phases before it.
    int base = 0;
    NO_UNROLL
    for (int f = 0; f < phase; ++f)
        base += args.lanes * ceil_div(args.height - f / args.period_x, args.period_y)
              * ceil_div(args.width - f % args.period_x, args.period_x);
    const int at_once = gridDim.x * (args.together ? THREADS / WARP : THREADS);  // strips
    const int rounds = ceil_div(total, at_once);                                 // of whole warps
    const int thread = blockIdx.x * THREADS + threadIdx.x;
    NO_UNROLL
    for (int round = 0; round < rounds; ++round) {
        const int place = round * at_once + (args.together ? thread / WARP : thread);
        const int strip = place % strips * STRIP, row = place / strips;
        const Strip at = {row / rows, first_y + row % rows * args.period_y,
                          first_x + strip * args.period_x, args.period_x, min(STRIP, cols - strip)};
        unsigned found = 0;
        if (place < total) {
            const int fresh = args.fresh[at.lane];
            NO_UNROLL
            for (int s = 0; s < args.sources; ++s) found |= found_in(args.source[s], at);
            if (fresh) found = ~0u;
            found &= (1u << at.pixels) - 1u;
            if (args.together && threadIdx.x % WARP != 0) found = 0;  // the first has it
        }
        if (!ballot(work)) return;
        list_strips(at, found, (at.lane * args.height + at.y) * args.width + at.x,
                    *reinterpret_cast<Staged*>(memory), round, args.list + base,
                    args.counts + phase);
    }
}

// The mask of a concatenation that was written in place: what is set in any of its inputs'. It
// may be called again with more inputs. counts is the number of pixels that became set.
extern "C" __global__ void __launch_bounds__(THREADS) unite_masks(CandidateArgs args) {
    wait_for_earlier_kernels();
    let_next_kernel_begin();
    if (!ballot(work_of_lane(args))) return;
    const int plane = args.height * args.width, total = args.lanes * plane;
    const int rounds = ceil_div(total, gridDim.x * THREADS);
    NO_UNROLL
    for (int round = 0; round < rounds; ++round) {
        const int pixel = (round * gridDim.x + blockIdx.x) * THREADS + threadIdx.x;
        bool set = false;
        if (pixel < total && args.mask[pixel] == 0) {
            set = args.fresh[pixel / plane] != 0;
            NO_UNROLL
            for (int s = 0; s < args.sources && !set; ++s)
                set = args.source[s].mask[pixel] != 0;
            if (set) args.mask[pixel] = 1;
        }
        const unsigned votes = ballot(set);
        if (threadIdx.x % WARP == 0 && votes) atomicAdd(args.counts, count_bits(votes));
    }
}

struct BeginArgs {
    uint4* masks;            // all masks of the stream
    long long mask_packs;    // of 16 bytes
    uint4* counters;         // all counters
    long long counter_packs;
    uint4* bits;             // all masks that are kept as bits too
    long long bit_packs;
    const int* bad;   // [lanes]: the frame holds what is not finite
    int* pending;     // [lanes]: the next good frame is a first frame
    int* fresh;       // [lanes + 1]: as in Rule
    int* told;        // [lanes], the host's: 1 a refused frame, 2 one that was a first frame
    Work* work;
    int lanes, unused;
};

// Starts a frame: empties masks and counters, and settles what each lane is in for.
extern "C" __global__ void __launch_bounds__(THREADS) begin_frame(BeginArgs args) {
    wait_for_earlier_kernels();
    let_next_kernel_begin();
    const long long first = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x;
    const long long step = static_cast<long long>(gridDim.x) * THREADS;
    NO_UNROLL
    for (long long i = first; i < args.mask_packs; i += step) args.masks[i] = uint4{0, 0, 0, 0};
    NO_UNROLL
    for (long long i = first; i < args.counter_packs; i += step)
        args.counters[i] = uint4{0, 0, 0, 0};
    NO_UNROLL
    for (long long i = first; i < args.bit_packs; i += step) args.bits[i] = uint4{0, 0, 0, 0};
    if (blockIdx.x != 0 || threadIdx.x != 0) return;
    int any = 0;
    NO_UNROLL
    for (int lane = 0; lane < args.lanes; ++lane) {
        const int fresh = args.pending[lane];
        if (args.bad[lane]) {
            args.fresh[lane] = 0;
            tell_host(args.told + lane, fresh ? 2 : 1);
        } else {
            args.fresh[lane] = fresh;
            args.pending[lane] = 0;
            any |= fresh;
        }
    }
    args.fresh[args.lanes] = any;
    args.work->dense = 0.f;
}

struct DenseArgs {
    uint4* masks;
    long long mask_packs;
    int* counters;
    const int* wholes;  // what a counter is of all pixels; 0 where kernels count by themselves
    int* fresh;         // [lanes + 1]
    int counted, lanes;
};

// Starts the dense way of a frame: everything changes, as in a first frame, and what is evaluated
// without being compared has been told so before.
extern "C" __global__ void __launch_bounds__(THREADS) change_everything(DenseArgs args) {
    wait_for_earlier_kernels();
    let_next_kernel_begin();
    const long long first = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x;
    const long long step = static_cast<long long>(gridDim.x) * THREADS;
    constexpr unsigned SET = 0x01010101u;
    NO_UNROLL
    for (long long i = first; i < args.mask_packs; i += step)
        args.masks[i] = uint4{SET, SET, SET, SET};
    NO_UNROLL
    for (long long i = first; i < args.counted; i += step)
        if (args.wholes[i]) args.counters[i] = args.wholes[i];
    NO_UNROLL
    for (long long i = first; i <= args.lanes; i += step) args.fresh[i] = 1;
}

struct EndArgs {
    const int* counters;    // what this frame counted
    const int* grains;      // what a tile computes at once
    const float* costs;     // of a candidate, by the sparse way, in parts of all that it may cost
    const byte* doors;      // whether it counts what a door let in
    long long* totals;      // [counters, 2]: their sums over the frames, plain and in whole tiles
    int* bad;               // [lanes]
    Work* work;
    int counted, lanes;
};

// Ends a frame: adds its counters to the totals, tells the next one what there was to do, and
// forgives.
extern "C" __global__ void __launch_bounds__(THREADS) end_frame(EndArgs args) {
    SHARED_MEMORY(memory);
    wait_for_earlier_kernels();
    let_next_kernel_begin();
    float share = 0.f, doors = 0.f;
    const bool dense = args.work->dense != 0.f;
    NO_UNROLL
    for (int i = threadIdx.x; i < args.counted; i += THREADS) {
        const int count = args.counters[i], grain = dense ? 1 : args.grains[i];
        share += count * args.costs[i];
        if (args.doors[i]) doors += count;
        args.totals[2 * i] += count;
        args.totals[2 * i + 1] += static_cast<long long>(ceil_div(count, grain)) * grain;
    }
    NO_UNROLL
    for (int lane = threadIdx.x; lane < args.lanes; lane += THREADS) args.bad[lane] = 0;
    share = group_sum<WARP>(share);
    doors = group_sum<WARP>(doors);
    float* sums = reinterpret_cast<float*>(memory);
    const int warp = threadIdx.x / WARP;
    if (threadIdx.x % WARP == 0) sums[2 * warp] = share, sums[2 * warp + 1] = doors;
    block_barrier();
    if (threadIdx.x != 0) return;
    for (int other = 1; other < THREADS / WARP; ++other) {
        share += sums[2 * other];
        doors += sums[2 * other + 1];
    }
    if (doors == 0.f || dense) return;  // it says nothing of what the next has to do
    args.work->share = share;
    args.work->doors = doors;
}
