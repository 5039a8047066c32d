// Update masks and what follows from them: candidates, unions, the frame's begin and end.
#include "common.cuh"

constexpr int MOST_SOURCES = 8;

// What output pixels read of a map. rows is [height_out, taps_y], cols [width_out, taps_x]:
// input indices, or -1 for a tap that is not there.
enum Reads { TAPS, OWN_PLACE, EVERYTHING };

struct MaskSource {
    const byte* mask;
    const int* changed;
    const int* rows;
    const int* cols;
    int height, width, taps_y, taps_x;
    int reads, unused;  // how, see Reads
};

struct CandidateArgs {
    const int* fresh;  // as in Rule
    int* list;         // pixels, a phase behind the other
    int* counts;       // one a phase
    byte* mask;        // of the union; null where a list is made
    int lanes, height, width;
    int period_y, period_x;  // phases of a transposed convolution; 1, 1 for anything else
    int sources;
    MaskSource source[MOST_SOURCES];
};

constexpr int THREADS = 256;
constexpr int EACH = 4;  // pixels of a thread, so that the shared counter is hit rarely

// The pixels that a thread looks at. Loads of all of them are under way together.
struct Pixels {
    int index[EACH], lane[EACH], y[EACH], x[EACH];
    bool exists[EACH], found[EACH];
};

__device__ void find_tapped(const MaskSource& from, Pixels& at) {
    const byte* mask[EACH];
    UNROLL
    for (int e = 0; e < EACH; ++e)
        mask[e] = from.mask + static_cast<long long>(at.lane[e]) * from.height * from.width;
    for (int i = 0; i < from.taps_y; ++i) {
        int row[EACH];
        UNROLL
        for (int e = 0; e < EACH; ++e)
            row[e] = at.exists[e] ? from.rows[at.y[e] * from.taps_y + i] : -1;
        for (int j = 0; j < from.taps_x; ++j) {
            UNROLL
            for (int e = 0; e < EACH; ++e) {
                const int col = row[e] < 0 ? -1 : from.cols[at.x[e] * from.taps_x + j];
                at.found[e] |= col >= 0 && mask[e][row[e] * from.width + col] != 0;
            }
        }
    }
}

__device__ void find_in(const MaskSource& from, Pixels& at) {
    if (from.reads == TAPS) {
        find_tapped(from, at);
        return;
    }
    const bool any = from.reads == EVERYTHING && *from.changed != 0;
    UNROLL
    for (int e = 0; e < EACH; ++e)
        at.found[e] |= at.exists[e]
                    && (from.reads == EVERYTHING ? any : from.mask[at.index[e]] != 0);
}

__device__ bool nothing_to_do(const CandidateArgs& args) {
    bool work = args.fresh[args.lanes] != 0;
    for (int s = 0; s < args.sources; ++s) work = work || *args.source[s].changed != 0;
    return !work;
}

// Lists the output pixels that must be evaluated again, in no particular order but for runs
// within a block. blockIdx.y is the phase.
extern "C" __global__ void __launch_bounds__(THREADS) find_candidates(CandidateArgs args) {
    SHARED_MEMORY(shared);
    wait_for_earlier_kernels();
    if (nothing_to_do(args)) return;
    int* warp_counts = reinterpret_cast<int*>(shared);  // [EACH * warps], then where they start
    int* start = warp_counts + EACH * (THREADS / WARP);
    const int phase = blockIdx.y;
    const int first_y = phase / args.period_x, first_x = phase % args.period_x;
    const int rows = ceil_div(args.height - first_y, args.period_y);
    const int cols = ceil_div(args.width - first_x, args.period_x);
    const int total = args.lanes * rows * cols;
    // Where the phase's part of the list begins: behind the pixels of the phases before it.
    int base = 0;
    for (int f = 0; f < phase; ++f)
        base += args.lanes * ceil_div(args.height - f / args.period_x, args.period_y)
              * ceil_div(args.width - f % args.period_x, args.period_x);
    const int warp = threadIdx.x / WARP, lane_id = threadIdx.x % WARP;
    for (int at = blockIdx.x * THREADS * EACH; at < total; at += gridDim.x * THREADS * EACH) {
        Pixels here;
        int rank[EACH];
        UNROLL
        for (int e = 0; e < EACH; ++e) {
            const int place = at + e * THREADS + threadIdx.x;
            const bool exists = here.exists[e] = place < total;
            const int lane = here.lane[e] = exists ? place / (rows * cols) : 0;
            const int y = here.y[e] = exists ? first_y + place / cols % rows * args.period_y : 0;
            const int x = here.x[e] = exists ? first_x + place % cols * args.period_x : 0;
            here.index[e] = (lane * args.height + y) * args.width + x;
            here.found[e] = exists && args.fresh[lane] != 0;
        }
        for (int s = 0; s < args.sources; ++s) find_in(args.source[s], here);
        UNROLL
        for (int e = 0; e < EACH; ++e) {
            const unsigned votes = ballot(here.found[e]);
            rank[e] = here.found[e] ? count_bits(votes & ((1u << lane_id) - 1u)) : -1;
            if (lane_id == 0) warp_counts[e * (THREADS / WARP) + warp] = count_bits(votes);
        }
        block_barrier();
        if (threadIdx.x == 0) {
            int sum = 0;
            for (int w = 0; w < EACH * (THREADS / WARP); ++w) {
                const int count = warp_counts[w];
                warp_counts[w] = sum;
                sum += count;
            }
            *start = sum ? atomicAdd(&args.counts[phase], sum) : 0;
        }
        block_barrier();
        UNROLL
        for (int e = 0; e < EACH; ++e)
            if (rank[e] >= 0)
                args.list[base + *start + warp_counts[e * (THREADS / WARP) + warp] + rank[e]] =
                    here.index[e];
        block_barrier();
    }
}

// The mask of a concatenation that was written in place: what is set in any of its inputs'. It
// may be called again with more inputs. counts is the number of pixels that became set.
extern "C" __global__ void __launch_bounds__(THREADS) unite_masks(CandidateArgs args) {
    wait_for_earlier_kernels();
    if (nothing_to_do(args)) return;
    const int plane = args.height * args.width, total = args.lanes * plane;
    const int rounds = ceil_div(total, gridDim.x * THREADS);
    for (int round = 0; round < rounds; ++round) {
        const int pixel = (round * gridDim.x + blockIdx.x) * THREADS + threadIdx.x;
        bool set = false;
        if (pixel < total && args.mask[pixel] == 0) {
            set = args.fresh[pixel / plane] != 0;
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
    const int* bad;   // [lanes]: the frame holds what is not finite
    int* pending;     // [lanes]: the next good frame is a first frame
    int* fresh;       // [lanes + 1]: as in Rule
    int* told;        // [lanes], the host's: 1 a refused frame, 2 one that was a first frame
    int lanes, unused;
};

// Starts a frame: empties masks and counters, and settles what each lane is in for.
extern "C" __global__ void __launch_bounds__(THREADS) begin_frame(BeginArgs args) {
    wait_for_earlier_kernels();
    const long long first = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x;
    const long long step = static_cast<long long>(gridDim.x) * THREADS;
    for (long long i = first; i < args.mask_packs; i += step) args.masks[i] = uint4{0, 0, 0, 0};
    for (long long i = first; i < args.counter_packs; i += step)
        args.counters[i] = uint4{0, 0, 0, 0};
    if (blockIdx.x != 0 || threadIdx.x != 0) return;
    int any = 0;
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
}

struct EndArgs {
    const int* counters;    // what this frame counted
    const int* grains;      // what a tile computes at once
    long long* totals;      // [counters, 2]: their sums over the frames, plain and in whole tiles
    int* bad;               // [lanes]
    int counted, lanes;
};

// Ends a frame: adds its counters to the totals, and forgives.
extern "C" __global__ void __launch_bounds__(THREADS) end_frame(EndArgs args) {
    wait_for_earlier_kernels();
    for (int i = threadIdx.x; i < args.counted; i += THREADS) {
        const int count = args.counters[i], grain = args.grains[i];
        args.totals[2 * i] += count;
        args.totals[2 * i + 1] += static_cast<long long>(ceil_div(count, grain)) * grain;
    }
    for (int lane = threadIdx.x; lane < args.lanes; lane += THREADS) args.bad[lane] = 0;
}
