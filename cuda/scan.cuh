// Candidates without a list: each block of a convolution looks through its inputs' masks, kept as
// bits, and so knows how many candidates there are and which ones a tile has. Where each output
// pixel reads the same pixel of the inputs, and maps are small, that takes less time than a launch
// of the kernel that makes lists.
#pragma once
#include "conv_args.cuh"

// In shared memory; `scan_bytes` in scan.py counts the same.
struct Found {
    unsigned* words;  // [lanes * height][words of a row], and up to 3 more: the candidates
    int* before;      // [THREADS]: how many are in front of a thread's words
    int* warps;       // [THREADS / WARP]: how many a warp has found
};

__device__ __forceinline__ int words_of_row(const ConvArgs& args) {
    return ceil_div(args.width_out, 32);
}

__device__ __forceinline__ int words_of_all(const ConvArgs& args) {
    return args.capacity / args.width_out * words_of_row(args);
}

// A thread's words follow each other. They are an odd number, so that threads side by side read
// from different banks.
__device__ __forceinline__ int words_of_thread(const ConvArgs& args) {
    return ceil_div(words_of_all(args), THREADS) | 1;
}

__device__ __forceinline__ Found found_in(int* memory, const ConvArgs& args) {
    Found found;
    found.words = reinterpret_cast<unsigned*>(memory);
    found.before = memory + ceil_div(words_of_all(args), 4) * 4;
    found.warps = found.before + THREADS;
    return found;
}

__device__ __forceinline__ void copy_bits(unsigned* to, const unsigned* from, int words) {
    for (int i = threadIdx.x * 4; i < words; i += THREADS * 4) copy_async<16>(to + i, from + i, true);
}

// All bits of a word of a map's row that stand for a pixel.
__device__ __forceinline__ unsigned all_of_word(const ConvArgs& args, int word) {
    const int left = args.width_out - word % words_of_row(args) * 32;
    return left < 32 ? (1u << left) - 1u : ~0u;
}

// Finds all candidates, and returns how many. All threads come here; `memory` is for as long as
// this takes.
__device__ __forceinline__ int scan(const Found& found, unsigned* memory, const ConvArgs& args) {
    const int total = words_of_all(args), plane = words_of_row(args) * args.height_out;
    copy_bits(found.words, args.bits, total);
    if (args.more_bits) copy_bits(memory, args.more_bits, total);
    commit_copies();
    const int any_fresh = args.rule.fresh[total / plane];
    const int each = words_of_thread(args), first = threadIdx.x * each;
    int sum = 0;
    wait_for_copies<0>();
    block_barrier();
    NO_UNROLL
    for (int i = first; i < min(first + each, total); ++i) {
        unsigned bits = found.words[i];
        if (args.more_bits) bits |= memory[i];
        if (any_fresh && args.rule.fresh[i / plane]) bits = all_of_word(args, i);
        found.words[i] = bits;
        sum += count_bits(bits);
    }
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int upto = sum;
    UNROLL
    for (int distance = 1; distance < WARP; distance *= 2) {
        const int more = shuffle_up(upto, distance);
        if (lane >= distance) upto += more;
    }
    if (lane == WARP - 1) found.warps[warp] = upto;
    block_barrier();
    int count = 0, before = upto - sum;
    UNROLL
    for (int w = 0; w < THREADS / WARP; ++w) {
        if (w < warp) before += found.warps[w];
        count += found.warps[w];
    }
    found.before[threadIdx.x] = before;
    block_barrier();
    return count;
}

// The pixel that is the candidate of a number below the count.
__device__ __forceinline__ int candidate(const Found& found, const ConvArgs& args, int number) {
    int thread = 0;
    UNROLL
    for (int step = THREADS / 2; step > 0; step /= 2)
        if (found.before[thread + step] <= number) thread += step;
    int left = number - found.before[thread], i = thread * words_of_thread(args), bit = 0;
    NO_UNROLL
    for (int here; left >= (here = count_bits(found.words[i])); ++i) left -= here;
    unsigned word = found.words[i];
    UNROLL
    for (int width = 16; width > 0; width /= 2) {
        const int low = count_bits(word & ((1u << width) - 1u));
        if (left < low) continue;
        left -= low;
        word >>= width;
        bit += width;
    }
    const int across = words_of_row(args), line = i / across;
    return line * args.width_out + (i - line * across) * 32 + bit;
}
