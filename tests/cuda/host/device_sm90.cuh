// What Hopper has beyond device.cuh, on a CPU: in the place of cuda/device_sm90.cuh.
//
// A product is computed when it is waited for, from what is in shared memory then; if that is not
// what was there when it began, a stage was overwritten too early.
#pragma once
#include "device.cuh"

constexpr int WARPGROUP = 128;

namespace host {

constexpr int K_BYTES = 32;  // of each row, that one instruction multiplies

struct Product {
    float* sums;
    int columns;
    const unsigned char *a, *b;  // as the instruction names them: start addresses
    int size;                    // bytes of a number
    float (*number)(const unsigned char*);  // what tensor cores take the one there for
    std::vector<unsigned char> seen_a, seen_b;
};

// Where a byte of a row is; addresses are permuted in every 1024 bytes of shared memory.
inline const unsigned char* place(const unsigned char* start, int row, int byte) {
    size_t at = start - shared() + row / 8 * 1024 + row % 8 * 128 + byte;
    at ^= at / 128 % 8 * 16;
    return shared() + at;
}

inline std::vector<unsigned char> matrix(const unsigned char* start, int rows) {
    std::vector<unsigned char> bytes(K_BYTES * rows);
    for (int row = 0; row < rows; ++row)
        for (int byte = 0; byte < K_BYTES; byte += 16)
            memcpy(&bytes[K_BYTES * row + byte], place(start, row, byte), 16);
    return bytes;
}

inline void compute(const Product& product) {
    const int thread = block->current % WARPGROUP;
    if (thread == 0 && (matrix(product.a, 64) != product.seen_a
                        || matrix(product.b, product.columns) != product.seen_b))
        complain("a stage was overwritten before its product was done");
    const auto number = [&](const unsigned char* start, int row, int k) {
        return product.number(place(start, row, k * product.size));
    };
    const int depth = K_BYTES / product.size;
    float left[2][16];
    for (int half = 0; half < 2; ++half)
        for (int k = 0; k < depth; ++k)
            left[half][k] = number(
                product.a, thread / WARP_SIZE * 16 + thread % WARP_SIZE / 4 + half * 8, k);
    for (int i = 0; i < product.columns / 2; ++i)
        for (int k = 0; k < depth; ++k)
            product.sums[i] += left[i / 2 % 2][k]
                             * number(product.b, i / 4 * 8 + thread % 4 * 2 + i % 2, k);
}

inline void check_start(const void* matrix) {
    const auto* start = static_cast<const unsigned char*>(matrix);
    const size_t at = start - shared();
    if (at % 128 % 32 || at / 128 % 8)
        complain("a matrix that does not begin with the first of 8 rows");
}

template <typename Half>
float taken(Half x) { return to_float(x); }

// As tf32: the upper 19 bits.
inline float taken(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return number_of(bits & ~0x1fffu);
}

}  // namespace host

inline int swizzled(int row, int byte) { return row * 128 + (byte ^ (row % 8 * 16)); }

inline void show_tensor_cores() {}

// How many copies have arrived. A copy lands when the first thread waits for it.
typedef unsigned long long Arrivals;

inline void start_arrivals(Arrivals* arrivals, int count) {
    for (int i = 0; i < count; ++i) arrivals[i] = 0;
}

namespace host {

inline Turn& turn_of(Arrivals* arrivals) {
    const auto found = block->turns.find(arrivals);
    if (found != block->turns.end()) return found->second;
    complain("a barrier that was not started");
    return block->turns[arrivals];
}

inline void arrive(Turn& turn) {
    if (turn.pending-- == 0) complain("more arrivals than are expected");
    turn.check();
}

}  // namespace host

inline void start_turns(Arrivals* arrivals, int count, int expected) {
    for (int i = 0; i < count; ++i) host::block->turns[arrivals + i] = {expected, expected};
}

inline void show_turns() {}
inline void arrive(Arrivals* arrivals) { host::arrive(host::turn_of(arrivals)); }

inline void arrive_expecting(Arrivals* arrivals, int bytes) {
    host::turn_of(arrivals).bytes += bytes;
    arrive(arrivals);
}

inline void arrive_behind_copies(Arrivals* arrivals) {
    auto& open = host::self().open;
    auto& copies = host::turn_of(arrivals).copies;
    copies.insert(copies.end(), open.begin(), open.end());
    open.clear();
    arrive(arrivals);
}

inline void send(float x, float* to, Arrivals* arrivals, int block) {
    unsigned char* there = host::shared_of(block);
    const auto at = [&](void* mine) {
        return there + (static_cast<unsigned char*>(mine) - host::shared());
    };
    memcpy(at(to), &x, 4);
    auto& turn = host::turn_of(reinterpret_cast<Arrivals*>(at(arrivals)));
    turn.bytes -= 4;
    turn.check();
}

template <int THREADS>
void first_threads_barrier() {
    int all[THREADS];
    host::exchange("first_threads_barrier", 0, all);
}

inline void copy_all(void* to, const void* from, int bytes, Arrivals* arrivals) {
    if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16
        || bytes % 16)
        host::complain("a copy that is not aligned");
    memset(to, host::block->poison, bytes);
    const host::Copy copy = {to, from, static_cast<size_t>(bytes), true};
    if (host::block->turns.count(arrivals)) {
        host::turn_of(arrivals).copies.push_back(copy);
        arrive(arrivals);
        return;
    }
    if (!host::block->arriving.emplace(arrivals, copy).second)
        host::complain("a second copy before the first has arrived");
}

inline void wait_for_arrival(Arrivals* arrivals, unsigned parity) {
    if (host::block->turns.count(arrivals)) {
        const host::Turn& turn = host::turn_of(arrivals);
        host::self().turn = &turn, host::self().parity = parity;
        while (turn.ended % 2 == parity) host::pause(host::AT_TURN);
        return;
    }
    if (*arrivals % 2 != parity) return;
    const auto found = host::block->arriving.find(arrivals);
    if (found == host::block->arriving.end()) {
        host::complain("an arrival that nothing was asked for");
        return;
    }
    memcpy(found->second.to, found->second.from, found->second.bytes);
    host::block->arriving.erase(found);
    ++*arrivals;
}

inline void wait_for_others(Arrivals* arrivals, unsigned parity) {
    wait_for_arrival(arrivals, parity);
}

// Of which there are enough: the compile tests count them.
template <int> void keep_registers() {}
template <int> void take_registers() {}

inline void begin_products() {
    int all[WARPGROUP];
    host::exchange("begin_products", 0, all);
}

typedef const unsigned char* Matrix;

inline Matrix matrix_at(const void* start) { return static_cast<Matrix>(start); }
inline Matrix further(Matrix matrix, int bytes) { return matrix + bytes; }

template <typename Number, int REGISTERS>
void multiply_warpgroup(Number, float (&c)[REGISTERS], Matrix a, Matrix b) {
    struct Call { Matrix a, b; } all[WARPGROUP];
    host::exchange("multiply_warpgroup", Call{a, b}, all);
    for (const Call& other : all)
        if (other.a != a || other.b != b) host::complain("threads multiply different matrices");
    host::check_start(a);
    host::check_start(b);
    auto product = std::make_shared<host::Product>();
    const auto number = [](const unsigned char* place) {
        Number x;
        memcpy(&x, place, sizeof x);
        return host::taken(x);
    };
    *product = {c, 2 * REGISTERS, a, b, sizeof(Number), number, {}, {}};
    if (host::block->current % WARPGROUP == 0) {
        product->seen_a = host::matrix(product->a, 64);
        product->seen_b = host::matrix(product->b, product->columns);
    }
    host::self().begun.push_back(product);
}

inline void commit_products() {
    host::self().products.push_back(std::move(host::self().begun));
    host::self().begun.clear();
}

template <int PENDING>
void wait_for_products() {
    int all[WARPGROUP];
    host::exchange("wait_for_products", 0, all);
    auto& products = host::self().products;
    while (products.size() > PENDING) {
        for (const auto& product : products.front()) host::compute(*product);
        products.erase(products.begin());
    }
}

inline void settled(float&) {}

// To 10 bits of mantissa, halves to even.
inline unsigned nearest_tf32(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return std::isfinite(x) ? (bits + 0xfffu + (bits >> 13 & 1u)) & ~0x1fffu : bits;
}

inline void prefetch(const void*) {}
inline void prefetch_all(const void*, int) {}

template <typename Half>
unsigned rounded_pair(Half, float x, float y) {
    Half low, high;
    from_float(x, low);
    from_float(y, high);
    return low.bits | static_cast<unsigned>(high.bits) << 16;
}

inline void cluster_barrier() { host::pause(host::AT_CLUSTER); }

inline void cluster_has_read() { cluster_barrier(); }

struct alignas(16) Four { float at[4]; };

template <typename T>
T read_of_block(const T* mine, int block) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(mine);
    T x;
    memcpy(&x, host::shared_of(block) + (bytes - host::shared()), sizeof x);
    return x;
}
