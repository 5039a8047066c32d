// Multiplication of a tile on tensor cores: float16 and bfloat16 by m16n8k16, float32 as tf32
// by m16n8k8. A warp has 32 rows and up to 64 columns; all sums are float32.
#pragma once
#include "common.cuh"

constexpr int WARP_COLS = BN >= 128 ? 64 : 32;
constexpr int WARPS_ACROSS = BN / WARP_COLS;
constexpr int THREADS = (BM / 32) * WARPS_ACROSS * WARP;
constexpr bool HALF = sizeof(Number) == 2;
// Padding by 16 bytes spreads the rows that are read together over all banks; tf32 reads B by
// columns of single numbers, which wants 8 of them.
constexpr int A_PAD = HALF ? 8 : 4, B_PAD = 8;
constexpr int A_STEP = BK + A_PAD, B_STEP = BN + B_PAD;

struct Multiplier {
    float sums[2][WARP_COLS / 8][4];

    static __device__ int first_row() { return threadIdx.x / WARP / WARPS_ACROSS * 32; }
    static __device__ int first_col() { return threadIdx.x / WARP % WARPS_ACROSS * WARP_COLS; }

    __device__ void clear() {
        UNROLL
        for (int i = 0; i < 2; ++i) {
            UNROLL
            for (int j = 0; j < WARP_COLS / 8; ++j) {
                UNROLL
                for (int k = 0; k < 4; ++k) sums[i][j][k] = 0.f;
            }
        }
    }

    template <typename Half>
    __device__ void add(const Half* a, const Half* b) {
        const int lane = threadIdx.x % WARP;
        // Matrices 0 and 1 are the upper and lower 8 rows of 8 numbers, 2 and 3 those beside them.
        const Half* a_row = a + (first_row() + lane % 16) * A_STEP + lane / 16 * 8;
        const Half* b_row = b + lane % 16 * B_STEP + first_col() + lane / 16 * 8;
        UNROLL
        for (int k = 0; k < BK; k += 16) {
            unsigned left[2][4], right[WARP_COLS / 16][4];
            UNROLL
            for (int i = 0; i < 2; ++i) load_matrices(left[i], a_row + i * 16 * A_STEP + k);
            UNROLL
            for (int j = 0; j < WARP_COLS / 16; ++j)
                load_matrices_transposed(right[j], b_row + k * B_STEP + j * 16);
            UNROLL
            for (int i = 0; i < 2; ++i) {
                UNROLL
                for (int j = 0; j < WARP_COLS / 8; ++j)
                    multiply(Half(), sums[i][j], left[i], &right[j / 2][j % 2 * 2]);
            }
        }
    }

    __device__ void add(const float* a, const float* b) {
        const int lane = threadIdx.x % WARP;
        const float* a_place = a + (first_row() + lane / 4) * A_STEP + lane % 4;
        const float* b_place = b + lane % 4 * B_STEP + first_col() + lane / 4;
        UNROLL
        for (int k = 0; k < BK; k += 8) {
            unsigned left[2][4];
            UNROLL
            for (int i = 0; i < 2; ++i) {
                UNROLL
                for (int part = 0; part < 4; ++part)
                    left[i][part] = to_tf32(
                        a_place[(i * 16 + part % 2 * 8) * A_STEP + k + part / 2 * 4]);
            }
            UNROLL
            for (int j = 0; j < WARP_COLS / 8; ++j) {
                const unsigned right[2] = {to_tf32(b_place[k * B_STEP + j * 8]),
                                           to_tf32(b_place[(k + 4) * B_STEP + j * 8])};
                UNROLL
                for (int i = 0; i < 2; ++i) multiply_tf32(sums[i][j], left[i], right);
            }
        }
    }

    // A thread holds two neighbours in each of two rows, 8 apart.
    __device__ void store(float* to, long long step) const {
        const int lane = threadIdx.x % WARP;
        float* place = to + (first_row() + lane / 4) * step + first_col() + lane % 4 * 2;
        UNROLL
        for (int i = 0; i < 2; ++i) {
            UNROLL
            for (int j = 0; j < WARP_COLS / 8; ++j) {
                UNROLL
                for (int half = 0; half < 2; ++half)
                    *reinterpret_cast<Pack<float, 2>*>(place + (i * 16 + half * 8) * step + j * 8) =
                        Pack<float, 2>{sums[i][j][2 * half], sums[i][j][2 * half + 1]};
            }
        }
    }
};
