// The machine that the kernels ask for, on a CPU: for tests. In the place of cuda/device.cuh.
//
// The blocks run one after the other; the threads of a block are fibres, of which one runs until
// it has to wait for others. So a barrier that is missing is noticed: what the others should have
// written is still poison. Asynchronous copies land at their wait and not before. Warp-wide
// functions need all 32 lanes at the same call. The blocks of a cluster run together.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#define __global__
#define __cudart_builtin__
#define __device__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define UNROLL
#define UNROLL_BY_4
#define NO_UNROLL
#define INFINITE INFINITY
#define SHARED_MEMORY(name) unsigned char* name = host::shared()

struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
struct Dim3 { int x, y, z; };
inline Dim3 threadIdx, blockIdx, blockDim, gridDim;
using std::max;
using std::min;

namespace host {

constexpr int WARP_SIZE = 32;
constexpr size_t STACK = 96 * 1024, CANARY = 256;

struct Copy { void* to; const void* from; size_t bytes; bool exists; };
enum State { READY, AT_GROUP, AT_BLOCK, AT_CLUSTER, AT_TURN, DONE };

// A barrier of counted arrivals, and what lands when its turn ends.
struct Turn {
    int expected, pending;
    long bytes = 0;  // that are still to come
    unsigned ended = 0;
    std::vector<Copy> copies;

    void check() {
        if (pending || bytes) return;
        for (const Copy& copy : copies) {
            if (copy.exists) memcpy(copy.to, copy.from, copy.bytes);
            else memset(copy.to, 0, copy.bytes);
        }
        copies.clear();
        pending = expected;
        ++ended;
    }
};

struct Product;  // of a warpgroup, in device_sm90.cuh

struct Thread {
    ucontext_t start;
    jmp_buf here;
    bool started = false, waited = false;  // the latter: for the kernels before this one
    State state = READY;
    const char* call = nullptr;  // the function of a group of threads that it waits in
    int group = 0;               // how many they are
    const void* given = nullptr;
    const struct Turn* turn = nullptr;  // that it waits for the end of
    unsigned parity = 0;
    std::vector<std::vector<Copy>> groups;  // committed, not landed
    std::vector<Copy> open;
    std::vector<std::vector<std::shared_ptr<Product>>> products;  // committed, not done
    std::vector<std::shared_ptr<Product>> begun;
};

// Stacks are kept from launch to launch: to clear them anew costs more than most kernels.
inline std::vector<void*> stacks;

// The blocks that run together: one, or a cluster.
struct Block {
    std::vector<Thread> threads;               // of all blocks, one block behind the other
    std::vector<std::vector<unsigned char>> memory;  // shared memory, a block each
    int first = 0;                             // the first block's index
    int size = 0;                              // threads of one
    int current = 0;
    unsigned char poison = 0xff;
    void (*kernel)(const void*) = nullptr;
    const void* args = nullptr;
    ucontext_t main;
    jmp_buf scheduler;
    std::string error;
    std::map<const void*, Turn> turns;
    std::map<const void*, Copy> arriving;  // copies by one instruction, by what is told
};

inline Block* block;

constexpr size_t ALIGNMENT = 1024;

inline unsigned char* shared_of(int rank) {
    const auto start = reinterpret_cast<uintptr_t>(block->memory[rank].data());
    return reinterpret_cast<unsigned char*>((start + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
}
inline int rank() { return block->current / block->size; }
inline unsigned char* shared() { return shared_of(rank()); }
inline Thread& self() { return block->threads[block->current]; }
inline int lane() { return block->current % WARP_SIZE; }

inline void pause(State state) {
    self().state = state;
    if (_setjmp(self().here) == 0) _longjmp(block->scheduler, 1);
}

inline void complain(const std::string& what) {
    if (block->error.empty())
        block->error = what + " (block " + std::to_string(blockIdx.x) + ", thread "
                     + std::to_string(block->current) + ")";
}

// What earlier kernels write may only be asked for once they have been waited for.
inline void check_waited() {
    if (!self().waited) complain("earlier kernels may still be running");
}

inline void body() {
    block->kernel(block->args);
    check_waited();
    if (!self().groups.empty() || !self().open.empty()) complain("copies are never waited for");
    if (!self().products.empty() || !self().begun.empty())
        complain("products are never waited for");
    self().state = DONE;
    _longjmp(block->scheduler, 1);
}

// Lets every thread of a group of SIZE neighbours see what each of them gave.
template <int SIZE, typename T>
void exchange(const char* call, const T& mine, T (&all)[SIZE]) {
    Thread& me = self();
    me.call = call;
    me.group = SIZE;
    me.given = &mine;
    const int first = block->current / SIZE * SIZE;
    pause(AT_GROUP);
    for (int i = 0; i < SIZE; ++i) {
        Thread& other = block->threads[first + i];
        if (other.state == DONE) {
            complain(std::string("a thread has left before ") + call);
            all[i] = mine;
        } else {
            all[i] = *static_cast<const T*>(other.given);
        }
    }
    pause(AT_GROUP);  // until all have looked
}

// Lets the group that a thread waits with go on, if all of its threads have come to the same call.
inline bool release_group(size_t waiting) {
    if (block->threads[waiting].state != AT_GROUP) return false;
    const size_t size = block->threads[waiting].group, first = waiting / size * size;
    for (size_t i = first; i < first + size; ++i) {
        Thread& thread = block->threads[i];
        if (thread.state == DONE) continue;
        if (thread.state != AT_GROUP || static_cast<size_t>(thread.group) != size) return false;
        if (strcmp(block->threads[waiting].call, thread.call)) {
            complain(std::string("threads meet in ") + block->threads[waiting].call + " and "
                     + thread.call);
            return false;
        }
    }
    for (size_t i = first; i < first + size; ++i)
        if (block->threads[i].state == AT_GROUP) block->threads[i].state = READY;
    return true;
}

// Lets the threads [first, last) go on, if those that are left all wait at a barrier.
inline bool release_at(State barrier, size_t first, size_t last) {
    size_t waiting = 0, done = 0;
    for (size_t i = first; i < last; ++i) {
        waiting += block->threads[i].state == barrier;
        done += block->threads[i].state == DONE;
    }
    if (waiting == 0 || waiting + done != last - first) return false;
    for (size_t i = first; i < last; ++i)
        if (block->threads[i].state == barrier) block->threads[i].state = READY;
    return true;
}

// Whether anybody is left to run.
inline bool release() {
    bool ran = false, left = false;
    for (size_t first = 0; first < block->threads.size(); first += block->size)
        ran |= release_at(AT_BLOCK, first, first + block->size);
    for (Thread& thread : block->threads)
        if (thread.state == AT_TURN && thread.turn->ended % 2 != thread.parity)
            thread.state = READY, ran = true;
    ran = ran || release_at(AT_CLUSTER, 0, block->threads.size());
    for (Thread& thread : block->threads) left |= thread.state != DONE;
    if (left && !ran)
        complain("deadlock: some threads wait at a barrier, others elsewhere");
    return left;
}

inline void resume(int index) {
    block->current = index;
    threadIdx = Dim3{index % block->size, 0, 0};
    const int at = block->first + rank();
    blockIdx = Dim3{at % gridDim.x, at / gridDim.x, 0};
    Thread& thread = self();
    if (_setjmp(block->scheduler) != 0) return;
    if (thread.started) _longjmp(thread.here, 1);
    thread.started = true;
    getcontext(&thread.start);
    while (stacks.size() <= static_cast<size_t>(index)) stacks.push_back(malloc(STACK));
    thread.start.uc_stack.ss_sp = stacks[index];
    thread.start.uc_stack.ss_size = STACK;
    thread.start.uc_link = nullptr;
    makecontext(&thread.start, body, 0);
    setcontext(&thread.start);
}

// Runs warps, named by where they begin in the order, as far as they get among themselves: each
// before the next one starts, and a group of warps that has met before all others, so that some
// are ahead wherever no barrier keeps them back.
inline void run_warps(const std::vector<int>& order, const std::vector<size_t>& warps) {
    bool more = true;
    while (more && block->error.empty()) {
        more = false;
        for (size_t warp : warps) {
            bool again = true;
            while (again && block->error.empty()) {
                for (size_t k = warp; k < warp + WARP_SIZE; ++k)
                    if (block->threads[order[k]].state == READY) resume(order[k]);
                const size_t group = block->threads[order[warp]].group;
                again = block->error.empty() && release_group(order[warp]);
                more |= again;
                if (!again || group <= WARP_SIZE || warps.size() * WARP_SIZE <= group) continue;
                std::vector<size_t> together;
                for (size_t other : warps)
                    if (order[other] / group == order[warp] / group) together.push_back(other);
                run_warps(order, together);
            }
        }
    }
}

inline void run_block(const std::vector<int>& order, size_t shared_bytes) {
    for (Thread& thread : block->threads) thread = Thread();
    block->turns.clear();
    for (auto& memory : block->memory)
        memset(memory.data(), block->poison, memory.size());
    std::vector<size_t> warps;
    for (size_t i = 0; i < order.size(); i += WARP_SIZE) warps.push_back(i);
    do run_warps(order, warps);
    while (block->error.empty() && release());
    if (!block->arriving.empty()) complain("an arrival is never waited for");
    for (size_t rank = 0; rank < block->memory.size(); ++rank)
        for (size_t i = shared_bytes; i < shared_bytes + CANARY; ++i)
            if (shared_of(rank)[i] != block->poison)
                complain("a store beyond the shared memory that was asked for");
}

inline std::vector<int> ordered(int count, int order) {
    std::vector<int> indices(count);
    for (int i = 0; i < count; ++i) indices[i] = order == 1 ? count - 1 - i : i;
    unsigned state = 12345;
    for (int i = count - 1; order == 2 && i > 0; --i) {
        state = state * 1664525u + 1013904223u;
        std::swap(indices[i], indices[(state >> 16) % (i + 1)]);
    }
    return indices;
}

// Warps in an order, and in each its lanes.
inline std::vector<int> ordered_threads(int count, int order) {
    std::vector<int> threads;
    for (int warp : ordered(count / WARP_SIZE, order))
        for (int lane : ordered(WARP_SIZE, order)) threads.push_back(warp * WARP_SIZE + lane);
    return threads;
}

// Runs a kernel; order is 0 forwards, 1 backwards, 2 mixed. Returns nothing, or what went wrong.
inline const char* run(void (*kernel)(const void*), const void* args, int grid_x, int grid_y,
                       int threads, size_t shared_bytes, int cluster, int order, int poison) {
    static std::string error;
    Block mine;
    block = &mine;
    mine.kernel = kernel;
    mine.args = args;
    mine.poison = static_cast<unsigned char>(poison);
    mine.size = threads;
    mine.threads.resize(threads * cluster);
    mine.memory.resize(cluster);
    for (auto& memory : mine.memory) memory.resize(shared_bytes + CANARY + ALIGNMENT);
    gridDim = Dim3{grid_x, grid_y, 1};
    blockDim = Dim3{threads, 1, 1};
    const std::vector<int> thread_order = ordered_threads(threads * cluster, order);
    for (int index : ordered(grid_x * grid_y / cluster, order)) {
        mine.first = index * cluster;
        run_block(thread_order, shared_bytes);
        if (!mine.error.empty()) break;
    }
    error = mine.error;
    block = nullptr;
    return error.empty() ? nullptr : error.c_str();
}

}  // namespace host

struct f16 { unsigned short bits; };
struct bf16 { unsigned short bits; };

inline float to_float(float x) { return x; }
inline float to_float(f16 x) {
    _Float16 y;
    memcpy(&y, &x, 2);
    return static_cast<float>(y);
}
inline float to_float(bf16 x) {
    const unsigned bits = static_cast<unsigned>(x.bits) << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}
inline void from_float(float x, float& y) { y = x; }
inline void from_float(float x, f16& y) {
    const _Float16 z = static_cast<_Float16>(x);
    memcpy(&y, &z, 2);
}
inline void from_float(float x, bf16& y) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    bits = x != x ? bits | 0x400000u : bits + 0x7fffu + ((bits >> 16) & 1u);
    y.bits = static_cast<unsigned short>(bits >> 16);
}

inline float clamp(float x, float least, float most) {
    return x < least ? least : (x > most ? most : x);
}

inline void block_barrier() { host::pause(host::AT_BLOCK); }

inline void warp_barrier() {
    int all[host::WARP_SIZE];
    host::exchange("warp_barrier", 0, all);
}

inline float shuffle_xor(float x, int mask) {
    float all[host::WARP_SIZE];
    host::exchange("shuffle_xor", x, all);
    return all[host::lane() ^ mask];
}

inline int shuffle_up(int x, int distance) {
    int all[host::WARP_SIZE];
    host::exchange("shuffle_up", x, all);
    return all[host::lane() < distance ? host::lane() : host::lane() - distance];
}

inline int broadcast(int x) {
    int all[host::WARP_SIZE];
    host::exchange("broadcast", x, all);
    return all[0];
}

inline unsigned ballot(bool flag) {
    bool all[host::WARP_SIZE];
    host::exchange("ballot", flag, all);
    unsigned votes = 0;
    for (int i = 0; i < host::WARP_SIZE; ++i) votes |= static_cast<unsigned>(all[i]) << i;
    return votes;
}

inline int count_bits(unsigned x) { return __builtin_popcount(x); }

inline int atomicAdd(int* where, int what) {
    host::check_waited();
    const int before = *where;
    *where += what;
    return before;
}

inline unsigned atomicOr(unsigned* where, unsigned what) {
    host::check_waited();
    const unsigned before = *where;
    *where |= what;
    return before;
}

inline void wait_for_earlier_kernels() { host::self().waited = true; }
inline void let_next_kernel_begin() {}

inline void tell_host(int* where, int what) { *where = what; }

template <int BYTES, bool STAY = true>
void copy_async(void* to, const void* from, bool exists) {
    if (reinterpret_cast<uintptr_t>(to) % BYTES || reinterpret_cast<uintptr_t>(from) % BYTES)
        host::complain("an asynchronous copy that is not aligned");
    host::check_waited();
    memset(to, host::block->poison, BYTES);
    host::self().open.push_back({to, from, BYTES, exists});
}

inline void commit_copies() {
    host::self().groups.push_back(std::move(host::self().open));
    host::self().open.clear();
}

template <int PENDING>
void wait_for_copies() {
    auto& groups = host::self().groups;
    while (groups.size() > PENDING) {
        for (const host::Copy& copy : groups.front()) {
            if (copy.exists) memcpy(copy.to, copy.from, copy.bytes);
            else memset(copy.to, 0, copy.bytes);
        }
        groups.erase(groups.begin());
    }
}

inline void matrices(unsigned (&r)[4], const void* row, bool transposed, const char* call) {
    if (reinterpret_cast<uintptr_t>(row) % 16) host::complain("a matrix row that is not aligned");
    const void* rows[host::WARP_SIZE];
    host::exchange(call, row, rows);
    for (int i = 0; i < 4; ++i) {
        const int along = host::lane() / 4, across = host::lane() % 4 * 2;
        unsigned short pair[2];
        for (int k = 0; k < 2; ++k) {
            const int y = transposed ? across + k : along, x = transposed ? along : across + k;
            pair[k] = static_cast<const unsigned short*>(rows[8 * i + y])[x];
        }
        r[i] = pair[0] | static_cast<unsigned>(pair[1]) << 16;
    }
}

inline void load_matrices(unsigned (&r)[4], const void* row) {
    matrices(r, row, false, "load_matrices");
}

inline void load_matrices_transposed(unsigned (&r)[4], const void* row) {
    matrices(r, row, true, "load_matrices_transposed");
}

struct Fragments { unsigned a[4], b[2]; };

template <typename T>
void multiply(T, float (&c)[4], const unsigned (&a)[4], const unsigned* b) {
    Fragments all[host::WARP_SIZE];
    host::exchange("multiply", Fragments{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}}, all);
    const auto number = [](unsigned bits, int k) {
        return to_float(T{static_cast<unsigned short>(bits >> (k % 2 * 16))});
    };
    for (int i = 0; i < 4; ++i) {
        const int row = host::lane() / 4 + i / 2 * 8, col = host::lane() % 4 * 2 + i % 2;
        for (int k = 0; k < 16; ++k) {
            const unsigned left = all[row % 8 * 4 + k % 8 / 2].a[row / 8 + k / 8 * 2];
            const unsigned right = all[col * 4 + k % 8 / 2].b[k / 8];
            c[i] += number(left, k) * number(right, k);
        }
    }
}

inline float number_of(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// To 10 bits of mantissa, halves away from zero.
inline unsigned to_tf32(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return std::isfinite(x) ? (bits + 0x1000u) & ~0x1fffu : bits;
}

inline void multiply_tf32(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    Fragments all[host::WARP_SIZE];
    host::exchange("multiply_tf32", Fragments{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}}, all);
    for (int i = 0; i < 4; ++i) {
        const int row = host::lane() / 4 + i / 2 * 8, col = host::lane() % 4 * 2 + i % 2;
        for (int k = 0; k < 8; ++k)
            c[i] += number_of(all[row % 8 * 4 + k % 4].a[row / 8 + k / 4 * 2])
                  * number_of(all[col * 4 + k % 4].b[k / 4]);
    }
}
