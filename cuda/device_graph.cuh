// What a kernel may ask of the CUDA graph that it is in.
#pragma once
#include "device.cuh"

extern "C" __device__ __cudart_builtin__ void cudaGraphSetConditional(
    cudaGraphConditionalHandle handle, unsigned int value);

// Says whether the graph's conditional part runs.
__device__ __forceinline__ void set_condition(long long condition, bool runs) {
    cudaGraphSetConditional(static_cast<cudaGraphConditionalHandle>(condition), runs);
}
