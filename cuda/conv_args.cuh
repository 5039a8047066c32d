// The arguments of a convolution, for whichever kernel multiplies its tiles.
#pragma once
#include "common.cuh"
#include "parts.cuh"

// Where taps are, for all output pixels alike: tap t of row y is row first_y + y * step_y +
// t * spread_y, where the map has it.
struct Window {
    int first_y, first_x, step_y, step_x, spread_y, spread_x;
};

struct ConvArgs {
    Rule rule;
    const Number* input;
    const Number* weight;    // in the layout of the kernel, see there
    const float* bias;       // [channels] or null
    const Number* residual;  // as large as the output, or null
    Number* output;
    const int* list;
    int* counts;             // one a phase
    const int* tables;       // where Phase.rows and .cols point into
    const Phase* phases;
    float* parts;
    const unsigned* bits;       // SCAN, in place of the list: an input's mask as bits, `mark`
    const unsigned* more_bits;  // another's, or null
    int step_in, step_out, step_residual;
    int height_in, width_in, height_out, width_out;
    int group_in, group_out;  // channels of a group
    int groups, phase_count, most_taps_y, most_taps_x;
    int capacity;  // entries of the list
    Window window;  // WINDOWED: says what the tables would say
};
