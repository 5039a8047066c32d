// In the place of cuda/device_graph.cuh: a condition is an integer of the test's.
#pragma once
#include "device.cuh"

inline void set_condition(long long condition, unsigned which) {
    *reinterpret_cast<int*>(condition) = static_cast<int>(which);
}
