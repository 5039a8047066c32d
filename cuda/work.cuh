// What a frame had to do, for the next one to choose its way by.
#pragma once

struct Work {
    float share;     // of what the sparse way would cost at most
    float doors;     // pixels that the doors let in
    float dense;     // 1: this frame goes the dense way
    float frames;    // that went it since one has compared
    float patience;  // after so many, one compares
    float break_even;  // the share from which on the dense way is taken
};
