// Multiplication of a tile without tensor cores, in float32: 8x8 (or 8x4) results a thread.
#pragma once
#include "common.cuh"

constexpr int THREAD_ROWS = 8;
constexpr int THREAD_COLS = BN >= 128 ? 8 : 4;
constexpr int THREADS = (BM / THREAD_ROWS) * (BN / THREAD_COLS);
constexpr int A_PAD = 16 / sizeof(Number), B_PAD = A_PAD;  // rows stay aligned, and spread over the banks
constexpr int A_STEP = BK + A_PAD, B_STEP = BN + B_PAD;

struct Multiplier {
    float sums[THREAD_ROWS][THREAD_COLS];

    static __device__ int row() { return threadIdx.x / (BN / THREAD_COLS); }
    static __device__ int col() { return threadIdx.x % (BN / THREAD_COLS) * 4; }

    __device__ void clear() {
        UNROLL
        for (int i = 0; i < THREAD_ROWS; ++i) {
            UNROLL
            for (int j = 0; j < THREAD_COLS; ++j) sums[i][j] = 0.f;
        }
    }

    // Rows are BM / 8 apart, columns in fours, so that neighbours read neighbouring banks.
    __device__ void add(const Number* a, const Number* b) {
        UNROLL
        for (int k = 0; k < BK; ++k) {
            float left[THREAD_ROWS], right[THREAD_COLS];
            UNROLL
            for (int i = 0; i < THREAD_ROWS; ++i) 
                left[i] = to_float(a[(row() + i * (BM / 8)) * A_STEP + k]);
            UNROLL
            for (int j = 0; j < THREAD_COLS; ++j)
                right[j] = to_float(b[k * B_STEP + col() + j % 4 + j / 4 * (BN / 2)]);
            UNROLL
            for (int i = 0; i < THREAD_ROWS; ++i) {
                UNROLL
                for (int j = 0; j < THREAD_COLS; ++j) sums[i][j] += left[i] * right[j];
            }
        }
    }

    __device__ void store(float* to, long long step) const {
        UNROLL
        for (int i = 0; i < THREAD_ROWS; ++i) {
            UNROLL
            for (int j = 0; j < THREAD_COLS; ++j)
                to[(row() + i * (BM / 8)) * step + col() + j % 4 + j / 4 * (BN / 2)] = sums[i][j];
        }
    }
};
