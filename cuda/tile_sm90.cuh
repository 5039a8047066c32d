// What kernels of warpgroups share: a stage's products, and the rule behind a tile's sums.
//
// The file that includes this has settled ROW_BYTES, BK, FIRST, the first thread of those that
// multiply, and what gather.cuh asks for.
#pragma once
#include "device_sm90.cuh"
#include "gather.cuh"

constexpr int A_STAGE = BM * ROW_BYTES, B_STAGE = BN * ROW_BYTES;
constexpr int WIDE = BN < 128 ? BN : 128, ACROSS = BN / WIDE;  // columns of an instruction
constexpr int PACK = 16;  // bytes
constexpr int FEW = PACK / static_cast<int>(sizeof(Number));  // channels of a pack
constexpr int QUAD = 4 * FEW;  // channels that four threads have a pack of each
constexpr int GROUPS = BN / QUAD;  // packs that a thread has in a row

// What a tile's rows are, and the thresholds they are held to.
struct TileRows : Rows { float* threshold; };

// Some rows behind each other; `at` is known to be in shared memory, and must stay so.
__device__ __forceinline__ TileRows rows_at(int* at, const ConvArgs& args) {
    TileRows rows;
    rows.pixel = at;
    rows.threshold = reinterpret_cast<float*>(rows.pixel + BM);
    rows.row = rows.pixel + 2 * BM;
    rows.col = rows.row + BM * args.most_taps_y;
    return rows;
}

// Numbers that `rows_at` takes.
__device__ __forceinline__ int size_of_rows(const ConvArgs& args) {
    return BM * (2 + args.most_taps_y + args.most_taps_x);
}

// The threshold that this thread's row of a tile is held to: a first frame's pixels to one that
// everything exceeds.
__device__ __forceinline__ float threshold_of(const ConvArgs& args, int listed, int first,
                                              int count) {
    const int i = threadIdx.x;
    const int lane = i < BM && first + i < count ? listed / args.rule.plane : 0;
    const int fresh = args.rule.fresh[lane];  // both at once
    const float threshold = args.rule.thresholds[lane];
    return fresh ? -1.f : threshold;
}

// The rows of a tile that a thread finishes: this one, and the one 8 further down.
__device__ __forceinline__ int first_row() {
    return (threadIdx.x - FIRST) / WARP * 16 + threadIdx.x % WARP / 4;
}

// A thread has a pack of neighbouring channels in every QUAD of a row, in two rows, 8 apart.
__device__ __forceinline__ int channel_of(int column, int group) {
    return column * BN + group * QUAD + threadIdx.x % 4 * FEW;
}

struct Sums { float at[ACROSS][WIDE / 2]; };

__device__ __forceinline__ void multiply_stage(Sums& sums, Matrix a, Matrix b) {
    begin_products();
    UNROLL
    for (int k = 0; k < ROW_BYTES; k += 32) {
        UNROLL
        for (int n = 0; n < ACROSS; ++n)
            multiply_warpgroup(Number(), sums.at[n], further(a, k),
                               further(b, n * WIDE * ROW_BYTES + k));
    }
    commit_products();
}

__device__ __forceinline__ float& sum_of(Sums& sums, int half, int group, int i) {
    const int column = group * QUAD;
    return sums.at[column / WIDE][column % WIDE / 2 + i / 2 * 4 + half * 2 + i % 2];
}

// Behind `wait_for_products`: sums may be read.
__device__ __forceinline__ void settle(Sums& sums) {
    UNROLL
    for (int n = 0; n < ACROSS; ++n)
        UNROLL
        for (int i = 0; i < WIDE / 2; ++i) settled(sums.at[n][i]);
}

// A pack of neighbouring channels of a pixel; 16-bit numbers two and two.
template <typename T>
struct alignas(PACK) Neighbours {
    unsigned at[4];

    __device__ __forceinline__ float number(int i) const {
        return to_float(T{static_cast<unsigned short>(at[i / 2] >> (i % 2 * 16))});
    }

    // Sets two that begin with an even one.
    __device__ __forceinline__ void set(int i, float x, float y) {
        at[i / 2] = rounded_pair(T(), x, y);
    }
};

template <>
struct alignas(PACK) Neighbours<float> {
    float at[4];

    __device__ __forceinline__ float number(int i) const { return at[i]; }
    __device__ __forceinline__ void set(int i, float x, float y) { at[i] = x, at[i + 1] = y; }
};

typedef Neighbours<Number> Few;

// How a pack is moved, OUT_VEC numbers at once; `left` are the channels from here on.
template <typename From, typename To>
__device__ __forceinline__ void move(const From* from, To* to, int left) {
    typedef Pack<Number, OUT_VEC> Part;
    UNROLL
    for (int i = 0; i < FEW / OUT_VEC; ++i)
        if (i * OUT_VEC < left)
            reinterpret_cast<Part*>(to)[i] = reinterpret_cast<const Part*>(from)[i];
}

// Groups whose loads are under way together: more would not fit into the registers, and where warps
// copy, they come from shared memory.
constexpr int CHUNK = GROUPS < 2 || FIRST > 0 ? 1 : BN > 128 ? 4 : 2;

// The norm over the channels, as far as it has come.
struct Norm {
    float sum;
    bool exceeds;
    float threshold;

    // As `score`: for the largest magnitude, it is enough to know that one exceeds the threshold.
    __device__ __forceinline__ void add(float now, float old, bool exists) {
        const float d = now == old ? 0.f : now - old;
        if (RMS) sum += exists ? d * d : 0.f;
        else exceeds = exceeds || (exists && !(fabsf(d) <= threshold));
    }

    __device__ __forceinline__ float total() const { return RMS ? sum : exceeds ? 1.f : 0.f; }
};

// Makes new values of the sums of one of a thread's two rows; returns its part of the norm.
// `maps` are what `fetch` of the kernel's file takes.
template <typename Maps>
__device__ __forceinline__ float finish_row(Sums& sums, const Maps& maps, const ConvArgs& args,
                                            long long pixel, float threshold, int half,
                                            int column) {
    const Number* before = args.output + pixel * args.step_out;
    const Number* residual = args.residual + pixel * args.step_residual;
    Norm norm = {0.f, false, threshold};
    UNROLL
    for (int first = 0; first < GROUPS; first += CHUNK) {
        Few old[CHUNK], added[CHUNK];
        UNROLL
        for (int g = 0; g < CHUNK; ++g) {
            const int channel = channel_of(column, first + g), left = args.rule.channels - channel;
            old[g] = added[g] = Few{};
            if (!ALL) fetch(maps, 0, half, first + g, before + channel, old[g], left);
            if (args.residual)
                fetch(maps, 1, half, first + g, residual + channel, added[g], left);
        }
        UNROLL
        for (int k = 0; k < CHUNK * FEW; k += 2) {
            const int g = k / FEW, i = k % FEW;
            const int left = args.rule.channels - channel_of(column, first + g);
            float& x = sum_of(sums, half, first + g, i);
            float& y = sum_of(sums, half, first + g, i + 1);
            Few now;
            now.set(i, activate(x + added[g].number(i), args.rule),
                    activate(y + added[g].number(i + 1), args.rule));
            x = now.number(i), y = now.number(i + 1);
            if (ALL) continue;
            norm.add(x, old[g].number(i), i / OUT_VEC * OUT_VEC < left);
            norm.add(y, old[g].number(i + 1), (i + 1) / OUT_VEC * OUT_VEC < left);
        }
    }
    return norm.total();
}

__device__ __forceinline__ void write_row(Sums& sums, const ConvArgs& args, long long pixel,
                                          int half, int column) {
    Number* output = args.output + pixel * args.step_out;
    UNROLL
    for (int g = 0; g < GROUPS; ++g) {
        const int channel = channel_of(column, g);
        Few now;
        UNROLL
        for (int i = 0; i < FEW; i += 2)
            now.set(i, sum_of(sums, half, g, i), sum_of(sums, half, g, i + 1));
        move(&now, output + channel, args.rule.channels - channel);
    }
}

// Writes the rows whose norms exceed their thresholds, and says so.
__device__ __forceinline__ void write_changes(Sums& sums, const ConvArgs& args, int column,
                                              const int (&pixels)[2], const float (&total)[2],
                                              const float (&threshold)[2]) {
    int listed = -1;  // the first two of four threads list a row each
    UNROLL
    for (int half = 0; half < 2; ++half) {
        const int pixel = pixels[half];
        if (pixel < 0 || (!ALL && !exceeds(total[half], args.rule, threshold[half]))) continue;
        write_row(sums, args, pixel, half, column);
        if (!ALL && column == 0 && threadIdx.x % 4 == half) {
            mark(args.rule, pixel);
            listed = pixel;
        }
    }
    if (!ALL && column == 0) list_changes(args.rule, listed >= 0, listed);
}
