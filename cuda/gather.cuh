// Rows of A, gathered from the input map tap by tap. The file that includes this has settled BM,
// BK, THREADS and VEC, the numbers copied at once.
#pragma once
#include "conv_args.cuh"

constexpr int A_PACKS = BM * BK / VEC, PACKS_A_ROW = BK / VEC;
constexpr int A_COPIES = A_PACKS / THREADS;
static_assert(A_PACKS % THREADS == 0 && THREADS % PACKS_A_ROW == 0,
              "a stage of A is the same number of copies for every thread");

// What a tile's rows are, in shared memory.
struct Rows {
    int* pixel;  // [BM]: of the output, -1 behind the last
    int* row;    // [BM][taps_y]: where the tap's row of the input begins, or -1
    int* col;    // [BM][taps_x]: the tap's column, or -1
};

// Looks up which pixels a tile computes and what they read.
__device__ void find_rows(const Rows& rows, const ConvArgs& args, const Phase& phase, int first,
                          int count) {
    for (int i = threadIdx.x; i < BM; i += THREADS) {
        const int pixel = first + i < count ? args.list[phase.list + first + i] : -1;
        rows.pixel[i] = pixel;
        const int y = pixel / args.width_out % args.height_out, x = pixel % args.width_out;
        const int lane = pixel / args.rule.plane;
        for (int t = 0; t < phase.taps_y; ++t) {
            const int row = pixel < 0 ? -1 : args.tables[phase.rows + y * phase.taps_y + t];
            rows.row[i * phase.taps_y + t] =
                row < 0 ? -1 : (lane * args.height_in + row) * args.width_in;
        }
        for (int t = 0; t < phase.taps_x; ++t)
            rows.col[i * phase.taps_x + t] =
                pixel < 0 ? -1 : args.tables[phase.cols + x * phase.taps_x + t];
    }
}

// Where this thread's packs of a stage come from, stage after stage. What a tap reads is looked
// up when the tap changes; in between, the channels follow each other.
struct Gather {
    Rows rows;
    const ConvArgs& args;
    const Phase& phase;
    const Number* input;  // of the group
    const Number* from[A_COPIES];
    bool exists[A_COPIES];
    int channel, tap_y, tap_x;

    __device__ Gather(Rows rows, const ConvArgs& args, const Phase& phase, int group,
                      int first_stage)
        : rows(rows), args(args), phase(phase), input(args.input + group * args.group_in) {
        const int k = first_stage * BK + threadIdx.x % PACKS_A_ROW * VEC;
        const int tap = k / args.group_in;
        channel = k % args.group_in;
        tap_y = tap / phase.taps_x;
        tap_x = tap % phase.taps_x;
        look_up();
    }

    __device__ void look_up() {
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

    __device__ void copy(int i, Number* to) const {
        constexpr int BYTES = VEC * static_cast<int>(sizeof(Number));
        if constexpr (BYTES >= 4) copy_async<BYTES>(to, from[i], exists[i]);
        else if (exists[i]) *to = *from[i];
        else from_float(0.f, *to);
    }

    // Goes on to the next stage.
    __device__ void advance() {
        channel += BK;
        if (channel < args.group_in) {
            UNROLL
            for (int i = 0; i < A_COPIES; ++i) from[i] += exists[i] ? BK : 0;
            return;
        }
        while (channel >= args.group_in && tap_y < phase.taps_y) {
            channel -= args.group_in;
            if (++tap_x == phase.taps_x) tap_x = 0, ++tap_y;
        }
        look_up();
    }
};
