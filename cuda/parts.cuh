// What `convolution.cu` and `pixels.cu` agree on about sums that are finished by a second kernel.
#pragma once

// The output pixels with the same taps: all of a convolution's, or one phase of a transposed
// convolution's.
struct Phase {
    int list;            // where its candidates begin in the list
    int taps_y, taps_x;
    int rows, cols;      // where its tables [height_out, taps_y] and [width_out, taps_x] begin
    int stages;          // of BK each, in K
    long long weight;    // where its filter begins
};

constexpr int FEWEST_STAGES = 4;  // of a split: fewer do not pay for its sums

// Into how many ranges of K the tiles are cut, where there are fewer of them than blocks. All
// splits of all tiles together are no more than blocks, which bounds the memory for sums.
__device__ __forceinline__ int splits_of(int tiles, int blocks, int stages) {
    const int most = stages / FEWEST_STAGES, fit = blocks / tiles;
    const int splits = most < fit ? most : fit;
    return splits < 1 ? 1 : splits;
}
