// What every kernel shares: the number type, activations, and the rule's decision.
//
// Compiled once a specialisation: NUMBER is float, f16 or bf16. All shapes are arguments.
#pragma once
#include "device.cuh"

typedef NUMBER Number;
typedef unsigned char byte;

constexpr int WARP = 32;

// ALL: a kernel evaluates all pixels, whatever is listed, and writes them: nothing is compared, and
// `change_everything` has said what changed.
#ifndef ALL
#define ALL 0
#endif

// Some numbers that lie one behind the other, of which some are moved by one instruction, aligned
// to their size: as a rule all.
template <typename T, int COUNT, int BY = COUNT>
struct alignas(sizeof(T) * BY) Pack { T at[COUNT]; };

// How a node decides, and where it says so.
struct Rule {
    const float* thresholds;  // [lanes]
    const int* fresh;         // [lanes + 1]: the lane's first frame; the last says whether any is
    byte* mask;               // [lanes * plane]
    int* changed;             // how many pixels of the mask are set
    int* list;                // which, in any order; null where no reader wants to know
    unsigned* bits;           // the mask as bits, `mark`; null where no reader wants them
    int plane;                // pixels of a lane
    int channels;             // of the output
    int rms;                  // which norm
    int width;                // of the map
    float y, z;               // settings of the activation
    float least, most;        // of what one that only clamps lets pass
};

// ACTIVATE is an expression of x and the settings (functions.py), where the activation is none
// that only clamps.
__device__ __forceinline__ float activate(float x, const Rule& rule) {
#ifdef ACTIVATE
    const float y = rule.y, z = rule.z;
    (void)y, (void)z;
    return ACTIVATE;
#else
    return clamp(x, rule.least, rule.most);
#endif
}

// One channel's part of the norm of the difference: for the largest magnitude, whether it
// exceeds the threshold. Two equal infinities do not differ.
__device__ __forceinline__ float score(float now, float old, float threshold, int rms) {
    const float d = now == old ? 0.f : now - old;
    if (rms) return d * d;
    return fabsf(d) <= threshold ? 0.f : 1.f;
}

// Whether the norm exceeds the threshold; what is not a number does.
__device__ __forceinline__ bool exceeds(float total, const Rule& rule, float threshold) {
    if (rule.rms) return !(sqrtf(total / rule.channels) <= threshold);
    return total > 0.f;
}

__device__ __forceinline__ int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Says that a pixel changed. Bits are in whole words a row, 32 pixels each.
__device__ __forceinline__ void mark(const Rule& rule, int pixel) {
    rule.mask[pixel] = 1;
    if (!rule.bits) return;
    const int row = pixel / rule.width, x = pixel - row * rule.width;
    atomicOr(rule.bits + row * ceil_div(rule.width, 32) + x / 32, 1u << x % 32);
}

// Reserves places in the list for what the lanes with a flag changed, and counts it.
__device__ __forceinline__ void list_changes(const Rule& rule, bool flag, int pixel) {
    const unsigned votes = ballot(flag);
    if (!votes) return;
    const int lane = threadIdx.x % WARP, count = count_bits(votes);
    if (!rule.list) {  // no answer is waited for
        if (lane == 0) atomicAdd(rule.changed, count);
        return;
    }
    const int start = broadcast(lane == 0 ? atomicAdd(rule.changed, count) : 0);
    if (flag) rule.list[start + count_bits(votes & ((1u << lane) - 1u))] = pixel;
}

// The sum over the lanes of a group of GROUP neighbours, a power of 2; each lane gets it.
template <int GROUP>
__device__ __forceinline__ float group_sum(float x) {
    UNROLL
    for (int distance = GROUP / 2; distance > 0; distance /= 2) x += shuffle_xor(x, distance);
    return x;
}

template <int GROUP>
__device__ __forceinline__ float group_max(float x) {
    UNROLL
    for (int distance = GROUP / 2; distance > 0; distance /= 2)
        x = fmaxf(x, shuffle_xor(x, distance));
    return x;
}
