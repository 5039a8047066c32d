// What a kernel may ask of the CUDA graph that it is in.
#pragma once
#include "device.cuh"

extern "C" __device__ __cudart_builtin__ void cudaGraphSetConditional(
    cudaGraphConditionalHandle handle, unsigned int value);

// Says which of the bodies of a graph's conditional part runs, or whether its only one does.
__device__ __forceinline__ void set_condition(long long condition, unsigned which) {
    cudaGraphSetConditional(static_cast<cudaGraphConditionalHandle>(condition), which);
}
