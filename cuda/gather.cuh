// Rows of A, gathered from the input map tap by tap. The file that includes this has settled BM,
// BK, THREADS, VEC, the numbers copied at once, and WINDOWED, whether taps follow from arithmetic.
#pragma once
#include "conv_args.cuh"

constexpr int A_PACKS = BM * BK / VEC, PACKS_A_ROW = BK / VEC;
constexpr int A_COPIES = A_PACKS / THREADS;
constexpr int PACK_BYTES = VEC * static_cast<int>(sizeof(Number));
// No asynchronous copy is small enough for some; and for many, there are no registers to keep where
// they come from.
constexpr bool BY_HAND = PACK_BYTES < 4, MANY_COPIES = BY_HAND || A_COPIES > 8;
constexpr int AT_ONCE = A_COPIES < 8 ? A_COPIES : 8, KEPT = MANY_COPIES ? 1 : A_COPIES;
static_assert(A_PACKS % THREADS == 0 && THREADS % PACKS_A_ROW == 0,
              "a stage of A is the same number of copies for every thread");

// What a tile's rows are, in shared memory.
struct Rows {
    int* pixel;  // [BM]: of the output, -1 behind the last
    int* row;    // [BM][taps_y]: where the tap's row of the input begins, or -1
    int* col;    // [BM][taps_x]: the tap's column, or -1
};

static_assert(BM <= THREADS, "a thread looks up a row");

// What the list says of this thread's row of the tile that begins at `first`. It may be behind the
// list's end; so it can be asked for while the count is still on its way.
__device__ __forceinline__ int listed_at(const ConvArgs& args, int start, int first) {
    const int place = start + first + static_cast<int>(threadIdx.x);
    return threadIdx.x < BM && place < args.capacity ? args.list[place] : -1;
}

__device__ __forceinline__ int place_in(int place, int size) {
    return place >= 0 && place < size ? place : -1;
}

// Looks up which pixels a tile computes and what they read.
__device__ __forceinline__ void find_rows(const Rows& rows, const ConvArgs& args,
                                          const Phase& phase, int listed, int first, int count) {
    const int i = threadIdx.x;
    if (i >= BM) return;
    const int pixel = first + i < count ? listed : -1;
    rows.pixel[i] = pixel;
    const int line = pixel / args.width_out, x = pixel - line * args.width_out;
    const int lane = line / args.height_out, y = line - lane * args.height_out;
    const Window& at = args.window;
    NO_UNROLL
    for (int t = 0; t < phase.taps_y; ++t) {
        int row = -1;
        if (pixel >= 0)
            row = WINDOWED
                ? place_in(at.first_y + y * at.step_y + t * at.spread_y, args.height_in)
                : args.tables[phase.rows + y * phase.taps_y + t];
        rows.row[i * phase.taps_y + t] =
            row < 0 ? -1 : (lane * args.height_in + row) * args.width_in;
    }
    NO_UNROLL
    for (int t = 0; t < phase.taps_x; ++t) {
        int col = -1;
        if (pixel >= 0)
            col = WINDOWED
                ? place_in(at.first_x + x * at.step_x + t * at.spread_x, args.width_in)
                : args.tables[phase.cols + x * phase.taps_x + t];
        rows.col[i * phase.taps_x + t] = col;
    }
}

// Where this thread's packs of a stage come from, stage after stage. What a tap reads is looked
// up when the tap changes; in between, the channels follow each other.
struct Gather {
    Rows rows;
    const ConvArgs& args;
    const Phase& phase;
    const Number* input;  // of the group
    const Number* from[KEPT];
    bool exists[KEPT];
    int channel, tap_y, tap_x;
    bool stale;  // the tap has changed

    __device__ Gather(Rows rows, const ConvArgs& args, const Phase& phase, int group,
                      int first_stage)
        : rows(rows), args(args), phase(phase), input(args.input + group * args.group_in) {
        const int k = first_stage * BK + threadIdx.x % PACKS_A_ROW * VEC;
        const int tap = k / args.group_in;
        channel = k - tap * args.group_in;
        tap_y = tap / phase.taps_x;
        tap_x = tap - tap_y * phase.taps_x;
        stale = true;
    }

    // Before the copies of a stage.
    __device__ __forceinline__ void look_up() {
        if (MANY_COPIES || !stale) return;
        stale = false;
        const bool within = tap_y < phase.taps_y;  // beyond K there are zeros
        UNROLL
        for (int i = 0; i < A_COPIES; ++i) {
            const int row = (threadIdx.x + i * THREADS) / PACKS_A_ROW;
            const int start = within ? rows.row[row * phase.taps_y + tap_y] : -1;
            const int col = within ? rows.col[row * phase.taps_x + tap_x] : -1;
            exists[i] = start >= 0 && col >= 0;
            from[i] = exists[i]
                ? input + static_cast<long long>(start + col) * args.step_in + channel : args.input;
        }
    }

    // Copies a stage's packs, of which `place(i)` is where one goes.
    template <typename Place>
    __device__ __forceinline__ void copy(Place place) const {
        if constexpr (MANY_COPIES) {
            copy_many(place);
        } else {
            UNROLL
            for (int i = 0; i < A_COPIES; ++i)
                copy_async<PACK_BYTES, STAY>(place(i), from[i], exists[i]);
        }
    }

    // All of a thread's copies are of one tap and channel. By hand, some are asked for before any of
    // them is waited for: stores and loads would wait for each other.
    template <typename Place>
    __device__ __forceinline__ void copy_many(Place place) const {
        const bool within = tap_y < phase.taps_y;  // beyond K there are zeros
        NO_UNROLL
        for (int first = 0; first < A_COPIES; first += AT_ONCE) {
            Pack<Number, VEC> packs[AT_ONCE];
            UNROLL
            for (int i = 0; i < AT_ONCE; ++i) {
                const int row = (threadIdx.x + (first + i) * THREADS) / PACKS_A_ROW;
                const int start = within ? rows.row[row * phase.taps_y + tap_y] : -1;
                const int col = within ? rows.col[row * phase.taps_x + tap_x] : -1;
                const bool exists = start >= 0 && col >= 0;
                const Number* from = exists
                    ? input + static_cast<long long>(start + col) * args.step_in + channel
                    : args.input;
                if constexpr (BY_HAND) {
                    packs[i] = Pack<Number, VEC>{};
                    if (exists) packs[i] = *reinterpret_cast<const Pack<Number, VEC>*>(from);
                } else {
                    copy_async<PACK_BYTES, STAY>(place(first + i), from, exists);
                }
            }
            if constexpr (BY_HAND) {
                UNROLL
                for (int i = 0; i < AT_ONCE; ++i)
                    *reinterpret_cast<Pack<Number, VEC>*>(place(first + i)) = packs[i];
            }
        }
    }

    // Goes on to the next stage.
    __device__ __forceinline__ void advance() {
        channel += BK;
        if (channel < args.group_in) {
            UNROLL
            for (int i = 0; i < KEPT; ++i)
                if (!MANY_COPIES) from[i] += exists[i] ? BK : 0;
            return;
        }
        NO_UNROLL
        while (channel >= args.group_in && tap_y < phase.taps_y) {
            channel -= args.group_in;
            if (++tap_x == phase.taps_x) tap_x = 0, ++tap_y;
        }
        stale = true;
    }
};
