// What the kernels ask of Hopper (sm_90a) beyond device.cuh: the matrix instruction of a whole
// warpgroup, and clusters of blocks. The tests put a file of the same name before this one.
//
// Matrices lie in shared memory as rows of 128 bytes, the longer side K; the 16-byte packs of a
// row are permuted by its number, `swizzled`, and every 8 rows begin at a multiple of 1024 bytes.
#pragma once
#include "device.cuh"

constexpr int WARPGROUP = 128;  // threads

// Where the pack at a byte of a row lies; the hardware permutes addresses in the same way.
__device__ __forceinline__ int swizzled(int row, int byte) {
    return row * 128 + (byte ^ (row % 8 * 16));
}

// Makes what this thread stored to shared memory, or copied there and has waited for, visible to
// the tensor cores, which read it by another proxy; before the barrier.
__device__ __forceinline__ void show_tensor_cores() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// What has arrived in shared memory, of copies of known size.
typedef unsigned long long Arrivals;

// By one thread, before a barrier of the block.
__device__ __forceinline__ void start_arrivals(Arrivals* arrivals, int count) {
    for (int i = 0; i < count; ++i) {
        const unsigned place = static_cast<unsigned>(__cvta_generic_to_shared(arrivals + i));
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(place) : "memory");
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    show_tensor_cores();
}

// Copies bytes, a multiple of 16 that are aligned to 16, by one instruction of one thread. All
// threads wait for them; each of `arrivals` is for one copy at a time.
__device__ __forceinline__ void copy_all(void* to, const void* from, int bytes,
                                         Arrivals* arrivals) {
    const unsigned place = static_cast<unsigned>(__cvta_generic_to_shared(to));
    const unsigned arrived = static_cast<unsigned>(__cvta_generic_to_shared(arrivals));
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(arrived), "r"(bytes)
                 : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1], %2, [%3];" ::"r"(place), "l"(from), "r"(bytes), "r"(arrived)
                 : "memory");
}

// `parity` is 0 for the first copy, 1 for the second, 0 for the third.
__device__ __forceinline__ void wait_for_arrival(Arrivals* arrivals, unsigned parity) {
    const unsigned arrived = static_cast<unsigned>(__cvta_generic_to_shared(arrivals));
    unsigned done = 0;
    while (!done)
        asm volatile("{\n"
                     ".reg .pred done;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, done;\n"
                     "}" : "=r"(done) : "r"(arrived), "r"(parity) : "memory");
}

// Barriers of which each turn ends with so many arrivals, and with the bytes that these tell of; by
// one thread, with `show_turns` behind all and then a barrier of the block or cluster.
__device__ __forceinline__ void start_turns(Arrivals* arrivals, int count, int expected) {
    for (int i = 0; i < count; ++i) {
        const unsigned place = static_cast<unsigned>(__cvta_generic_to_shared(arrivals + i));
        asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(place), "r"(expected)
                     : "memory");
    }
}

__device__ __forceinline__ void show_turns() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    show_tensor_cores();
}

// Behind all that this thread has read and written.
__device__ __forceinline__ void arrive(Arrivals* arrivals) {
    const unsigned place = static_cast<unsigned>(__cvta_generic_to_shared(arrivals));
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(place) : "memory");
}

// As soon as all asynchronous copies of this thread have landed.
__device__ __forceinline__ void arrive_behind_copies(Arrivals* arrivals) {
    const unsigned place = static_cast<unsigned>(__cvta_generic_to_shared(arrivals));
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(place) : "memory");
}

// Tells how many bytes other blocks will `send`.
__device__ __forceinline__ void arrive_expecting(Arrivals* arrivals, int bytes) {
    const unsigned place = static_cast<unsigned>(__cvta_generic_to_shared(arrivals));
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(place), "r"(bytes)
                 : "memory");
}

// Sends a number to where another block of the cluster, or this one, has what this one has at `to`.
__device__ __forceinline__ void send(float x, float* to, Arrivals* arrivals, int block) {
    const unsigned place = static_cast<unsigned>(__cvta_generic_to_shared(to));
    const unsigned arrived = static_cast<unsigned>(__cvta_generic_to_shared(arrivals));
    asm volatile("{\n"
                 ".reg .u32 there, told;\n"
                 "mapa.shared::cluster.u32 there, %0, %3;\n"
                 "mapa.shared::cluster.u32 told, %1, %3;\n"
                 "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [there], %2, [told];\n"
                 "}" ::"r"(place), "r"(arrived), "r"(__float_as_uint(x)), "r"(block) : "memory");
}

// `wait_for_arrival` of what other blocks send.
__device__ __forceinline__ void wait_for_others(Arrivals* arrivals, unsigned parity) {
    const unsigned arrived = static_cast<unsigned>(__cvta_generic_to_shared(arrivals));
    unsigned done = 0;
    while (!done)
        asm volatile("{\n"
                     ".reg .pred done;\n"
                     "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, done;\n"
                     "}" : "=r"(done) : "r"(arrived), "r"(parity) : "memory");
}

// Of the first THREADS threads of a block.
template <int THREADS>
__device__ __forceinline__ void first_threads_barrier() {
    asm volatile("barrier.sync 1, %0;" ::"n"(THREADS) : "memory");
}

// Of a whole warpgroup: from here on it has so many registers a thread, a multiple of 8. It gives
// the others back to its block, or waits for those that others have given.
template <int REGISTERS>
__device__ __forceinline__ void keep_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

template <int REGISTERS>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// Before the first product: orders it behind what the registers were used for.
__device__ __forceinline__ void begin_products() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void commit_products() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Until no more than PENDING groups of products are under way; only then are sums complete and
// what was multiplied may be overwritten.
template <int PENDING>
__device__ __forceinline__ void wait_for_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Behind `wait_for_products`, of each sum: no compiler may read or move it before.
__device__ __forceinline__ void settled(float& sum) {
    asm volatile("" : "+f"(sum) :: "memory");
}

// A matrix in shared memory: its address, 1024 bytes from 8 rows to the next 8, and that packs
// are permuted within 128 bytes.
typedef unsigned long long Matrix;

__device__ __forceinline__ Matrix matrix_at(const void* start) {
    const unsigned place = static_cast<unsigned>(__cvta_generic_to_shared(start));
    return (place & 0x3ffffu) >> 4 | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

// The one that begins some bytes behind.
__device__ __forceinline__ Matrix further(Matrix matrix, int bytes) {
    return matrix + (bytes >> 4);
}

// c += a b for 64 rows of a and N of b, 32 bytes of K each, which a and b begin with. Of a row that
// is N long, thread t holds columns t % 4 * 2 and the one behind it in every 8, in rows t % 32 / 4
// and 8 further of its warp's 16. Of float, tensor cores take the upper 19 bits: tf32.
#define PRODUCTS_OF(Number, SHAPE, ORDER)                                                         \
    __device__ __forceinline__ void multiply_warpgroup(Number, float (&c)[16], Matrix a,          \
                                                       Matrix b) {                                \
        asm volatile("wgmma.mma_async.sync.aligned.m64n32" SHAPE " {"                             \
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "             \
            "%16, %17, 1, 1, 1" ORDER ";"                                                         \
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]),                                     \
              "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]),                                     \
              "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]),                                   \
              "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15])                                  \
            : "l"(a), "l"(b));                                                                    \
    }                                                                                             \
    __device__ __forceinline__ void multiply_warpgroup(Number, float (&c)[32], Matrix a,          \
                                                       Matrix b) {                                \
        asm volatile("wgmma.mma_async.sync.aligned.m64n64" SHAPE " {"                             \
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "              \
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "   \
            "%32, %33, 1, 1, 1" ORDER ";"                                                         \
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]),                                     \
              "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]),                                     \
              "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]),                                   \
              "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]),                                 \
              "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]),                                 \
              "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]),                                 \
              "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]),                                 \
              "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31])                                  \
            : "l"(a), "l"(b));                                                                    \
    }                                                                                             \
    __device__ __forceinline__ void multiply_warpgroup(Number, float (&c)[64], Matrix a,          \
                                                       Matrix b) {                                \
        asm volatile("wgmma.mma_async.sync.aligned.m64n128" SHAPE " {"                            \
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "              \
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "    \
            "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "    \
            "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "   \
            "%64, %65, 1, 1, 1" ORDER ";"                                                         \
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]),                                     \
              "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]),                                     \
              "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]),                                   \
              "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]),                                 \
              "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]),                                 \
              "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]),                                 \
              "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]),                                 \
              "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31]),                                 \
              "+f"(c[32]), "+f"(c[33]), "+f"(c[34]), "+f"(c[35]),                                 \
              "+f"(c[36]), "+f"(c[37]), "+f"(c[38]), "+f"(c[39]),                                 \
              "+f"(c[40]), "+f"(c[41]), "+f"(c[42]), "+f"(c[43]),                                 \
              "+f"(c[44]), "+f"(c[45]), "+f"(c[46]), "+f"(c[47]),                                 \
              "+f"(c[48]), "+f"(c[49]), "+f"(c[50]), "+f"(c[51]),                                 \
              "+f"(c[52]), "+f"(c[53]), "+f"(c[54]), "+f"(c[55]),                                 \
              "+f"(c[56]), "+f"(c[57]), "+f"(c[58]), "+f"(c[59]),                                 \
              "+f"(c[60]), "+f"(c[61]), "+f"(c[62]), "+f"(c[63])                                  \
            : "l"(a), "l"(b));                                                                    \
    }

PRODUCTS_OF(f16, "k16.f32.f16.f16", ", 0, 0")
PRODUCTS_OF(bf16, "k16.f32.bf16.bf16", ", 0, 0")
PRODUCTS_OF(float, "k8.f32.tf32.tf32", "")

// To the nearest that tf32 has, of two the even one: an instruction, where that of `to_tf32` is
// three.
__device__ __forceinline__ unsigned nearest_tf32(float x) {
    unsigned y;
    asm("cvt.rn.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
    return y;
}

// Two numbers, the first in the lower half.
__device__ __forceinline__ unsigned rounded_pair(f16, float x, float y) {
    unsigned pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(y), "f"(x));
    return pair;
}

__device__ __forceinline__ unsigned rounded_pair(bf16, float x, float y) {
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(y), "f"(x));
    return pair;
}

__device__ __forceinline__ void prefetch(const void* from) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
}

__device__ __forceinline__ void prefetch_all(const void* from, int bytes) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes));
}

// All threads of the blocks of a cluster.
__device__ __forceinline__ void cluster_barrier() {
    asm volatile("barrier.cluster.arrive.release;\n"
                 "barrier.cluster.wait.acquire;" ::: "memory");
}

// The same, where nothing was written for the others.
__device__ __forceinline__ void cluster_has_read() {
    asm volatile("barrier.cluster.arrive.relaxed;\n"
                 "barrier.cluster.wait;" ::: "memory");
}

struct alignas(16) Four { float at[4]; };

// What another block of the cluster has where this one has `mine`, in shared memory.
__device__ __forceinline__ Four read_of_block(const Four* mine, int block) {
    const unsigned place = static_cast<unsigned>(__cvta_generic_to_shared(mine));
    unsigned there;
    Four x;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(place), "r"(block));
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(x.at[0]), "=f"(x.at[1]), "=f"(x.at[2]), "=f"(x.at[3])
                 : "r"(there) : "memory");
    return x;
}

__device__ __forceinline__ float read_of_block(const float* mine, int block) {
    const unsigned place = static_cast<unsigned>(__cvta_generic_to_shared(mine));
    unsigned there;
    float x;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(place), "r"(block));
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(x) : "r"(there) : "memory");
    return x;
}
