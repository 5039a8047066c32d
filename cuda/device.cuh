// What the kernels ask of the machine beyond plain C++, one small function each. The tests put
// a file of the same name and functions before this one and run the kernels on a CPU.
#pragma once

#define SHARED_MEMORY(name) extern __shared__ __align__(1024) unsigned char name[]
#define UNROLL _Pragma("unroll")
#define UNROLL_BY_4 _Pragma("unroll 4")
// For loops that few numbers go around: a launch fetches its code anew, and what the compiler
// unrolls of itself costs microseconds where a kernel takes few.
#define NO_UNROLL _Pragma("unroll 1")
#define INFINITE __int_as_float(0x7f800000)

// float16 and bfloat16 travel as their 16 bits; every sum is float32.
struct f16 { unsigned short bits; };
struct bf16 { unsigned short bits; };

__device__ __forceinline__ float to_float(float x) { return x; }

__device__ __forceinline__ float to_float(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

__device__ __forceinline__ float to_float(bf16 x) {
    return __uint_as_float(static_cast<unsigned>(x.bits) << 16);
}

__device__ __forceinline__ void from_float(float x, float& y) { y = x; }

__device__ __forceinline__ void from_float(float x, f16& y) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
}

// To the nearest even, by hand: the instruction is missing below sm_80.
__device__ __forceinline__ void from_float(float x, bf16& y) {
    const unsigned bits = __float_as_uint(x);
    const unsigned rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    y.bits = static_cast<unsigned short>((x != x ? bits | 0x400000u : rounded) >> 16);
}

// NaN stays NaN.
__device__ __forceinline__ float clamp(float x, float least, float most) {
#if __CUDA_ARCH__ >= 800
    asm("max.NaN.f32 %0, %0, %1;" : "+f"(x) : "f"(least));
    asm("min.NaN.f32 %0, %0, %1;" : "+f"(x) : "f"(most));
    return x;
#else
    return x < least ? least : (x > most ? most : x);
#endif
}

__device__ __forceinline__ void block_barrier() { __syncthreads(); }
__device__ __forceinline__ void warp_barrier() { __syncwarp(); }

__device__ __forceinline__ float shuffle_xor(float x, int mask) {
    return __shfl_xor_sync(0xffffffffu, x, mask);
}

// What the lane some places before has; the first lanes get what they gave.
__device__ __forceinline__ int shuffle_up(int x, int distance) {
    return __shfl_up_sync(0xffffffffu, x, distance);
}

// What lane 0 has.
__device__ __forceinline__ int broadcast(int x) { return __shfl_sync(0xffffffffu, x, 0); }

__device__ __forceinline__ unsigned ballot(bool flag) {
    return __ballot_sync(0xffffffffu, flag);
}

__device__ __forceinline__ int count_bits(unsigned x) { return __popc(x); }

// Kernels are launched before the one ahead of them in the stream is done, where the device can
// (sm_90): each waits for it, before it reads anything that may have been written by an earlier
// one, and lets the next one begin.
__device__ __forceinline__ void wait_for_earlier_kernels() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void let_next_kernel_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// An integer that the host may read at any time.
__device__ __forceinline__ void tell_host(int* where, int what) {
    *reinterpret_cast<volatile int*>(where) = what;
    __threadfence_system();
}

#if __CUDA_ARCH__ >= 800

// Starts a copy to shared memory of BYTES (4, 8 or 16), or of zeros where !exists. The data
// are there once `wait_for_copies` has returned and a barrier has been passed. As a rule they stay
// in the multiprocessor's first cache too: neighbouring tiles read the same pixels and filters.
template <int BYTES, bool STAY = true>
__device__ __forceinline__ void copy_async(void* to, const void* from, bool exists) {
    const unsigned place = static_cast<unsigned>(__cvta_generic_to_shared(to));
    const int size = exists ? BYTES : 0;
    if (BYTES == 16 && !STAY)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(place), "l"(from),
                     "r"(size) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(place), "l"(from),
                 "n"(BYTES), "r"(size) : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int PENDING>
__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

#else  // no asynchronous copies: each is done when it is asked for

template <int BYTES, bool STAY = true>
__device__ __forceinline__ void copy_async(void* to, const void* from, bool exists) {
    UNROLL
    for (int i = 0; i < BYTES / 4; ++i)
        static_cast<unsigned*>(to)[i] = exists ? static_cast<const unsigned*>(from)[i] : 0u;
}

__device__ __forceinline__ void commit_copies() {}

template <int PENDING>
__device__ __forceinline__ void wait_for_copies() {}

#endif

// Loads four 8x8 matrices of 16-bit numbers; lane i gives the address of row i % 8 of matrix
// i / 8. The rows are 16 bytes, aligned.
__device__ __forceinline__ void load_matrices(unsigned (&r)[4], const void* row) {
    const unsigned place = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(place) : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(unsigned (&r)[4], const void* row) {
    const unsigned place = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(place) : "memory");
}

// c += a b for a 16x16 and a 16x8 matrix. The type is that of the numbers behind the bits.
__device__ __forceinline__ void multiply(f16, float (&c)[4], const unsigned (&a)[4],
                                         const unsigned* b) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    UNROLL
    for (int half = 0; half < 2; ++half)
        asm volatile(
            "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
            "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
#endif
}

__device__ __forceinline__ void multiply(bf16, float (&c)[4], const unsigned (&a)[4],
                                         const unsigned* b) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// c += a b for a 16x8 and an 8x8 matrix of tf32.
__device__ __forceinline__ void multiply_tf32(float (&c)[4], const unsigned (&a)[4],
                                              const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

__device__ __forceinline__ unsigned to_tf32(float x) {
#if __CUDA_ARCH__ >= 800
    unsigned y;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
    return y;
#else
    return __float_as_uint(x);
#endif
}
