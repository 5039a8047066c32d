// Convolution at the candidates on Hopper's tensor cores, with the rule applied behind it.
//
// The same implicit GEMM as in convolution.cu, multiplied by whole warpgroups: each computes 64
// rows of a tile and BN channels, and finishes them in its registers. Where there are more
// channels, the blocks of a cluster have BN of them each for the same rows, and add up their parts
// of the norm.
//
// Filters lie as [phase][tile of BN channels][K in stages of BK][BN][BK], the channels of every 32
// in an order (`channel_order` in filters.py) with which a thread holds 8 neighbours.
//
// Specialised on: NUMBER, float16 or bfloat16; BM, rows of a tile; BN; STAGES; VEC, the numbers of
// A copied at once; OUT_VEC, those moved at once behind it; RMS, the norm; BLOCKS, how many are
// resident.
#include "device_sm90.cuh"

constexpr int BK = 64, THREADS = BM / 64 * WARPGROUP;
#include "gather.cuh"

constexpr int ROW_BYTES = 128;
constexpr int A_STAGE = BM * ROW_BYTES, B_STAGE = BN * ROW_BYTES;
constexpr int B_VEC = 8, B_COPIES = BN * BK / B_VEC / THREADS;
constexpr int WIDE = BN < 128 ? BN : 128, ACROSS = BN / WIDE;  // columns of an instruction
constexpr int GROUPS = BN / 32;  // packs of 8 channels that a thread has in a row
constexpr int AHEAD = STAGES - 2;  // stages under way: one is multiplied, one may be still
static_assert(BN * BK / B_VEC % THREADS == 0, "a stage of B is as many copies for every thread");
static_assert(AHEAD >= 1, "stages: one to be copied, and two that are multiplied");

// Shared memory, in this order; `shared_bytes` in tiles.py counts the same.
struct Shared {
    byte* a;       // [STAGES][BM][ROW_BYTES], permuted
    byte* b;       // [STAGES][BN][ROW_BYTES], permuted
    float* total;  // [BM]: of the norm, this block's part
    int* rows;     // of this tile and of the next, `rows_of`
};

__device__ __forceinline__ Shared share(byte* memory) {
    Shared shared;
    shared.a = memory;
    shared.b = memory + STAGES * A_STAGE;
    shared.total = reinterpret_cast<float*>(shared.b + STAGES * B_STAGE);
    shared.rows = reinterpret_cast<int*>(shared.total + BM);
    return shared;
}

// By arithmetic alone: that these are addresses in shared memory must stay known.
__device__ __forceinline__ Rows rows_of(const Shared& shared, const ConvArgs& args, int turn) {
    Rows rows;
    rows.pixel = shared.rows + turn * BM * (1 + args.most_taps_y + args.most_taps_x);
    rows.row = rows.pixel + BM;
    rows.col = rows.row + BM * args.most_taps_y;
    return rows;
}

// Asks for what the rule will compare with and add, while the tile is multiplied.
__device__ void prefetch_rows(Rows rows, const ConvArgs& args, int column) {
    const long long pixel = rows.pixel[threadIdx.x / 2];
    if (pixel < 0) return;
    constexpr int LINE = 64;  // numbers
    for (int n = threadIdx.x % 2 * LINE; n < BN; n += 2 * LINE) {
        const int channel = column * BN + n;
        if (channel >= args.rule.channels) return;
        prefetch(args.output + pixel * args.step_out + channel);
        if (args.residual) prefetch(args.residual + pixel * args.step_residual + channel);
    }
}

struct Sums { float at[ACROSS][WIDE / 2]; };

// Copies stages of A and B, one after the other.
struct Loader {
    Gather gather;
    const Number* weight;
    byte* a;
    byte* b;

    __device__ Loader(const Shared& shared, Rows rows, const ConvArgs& args,
                      const Phase& phase, int column, int first_stage)
        : gather(rows, args, phase, 0, first_stage) {
        const long long stage = static_cast<long long>(column) * phase.stages + first_stage;
        weight = args.weight + phase.weight + stage * BK * BN + threadIdx.x * B_VEC;
        a = shared.a;
        b = shared.b + swizzled(threadIdx.x / 8, threadIdx.x % 8 * 16);
    }

    __device__ void load(int slot) {
        UNROLL
        for (int i = 0; i < A_COPIES; ++i) {
            const int row = threadIdx.x / PACKS_A_ROW + i * (THREADS / PACKS_A_ROW);
            const int at = threadIdx.x % PACKS_A_ROW * VEC * static_cast<int>(sizeof(Number));
            gather.copy(i, reinterpret_cast<Number*>(a + slot * A_STAGE + swizzled(row, at)));
        }
        UNROLL
        for (int i = 0; i < B_COPIES; ++i)
            copy_async<16>(b + slot * B_STAGE + i * (THREADS / 8) * ROW_BYTES,
                           weight + i * THREADS * B_VEC, true);
        weight += BK * BN;
        gather.advance();
    }
};

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

// A thread has 8 neighbouring channels in every 32 of a row, in two rows, 8 apart.
__device__ __forceinline__ int channel_of(int column, int group) {
    return column * BN + group * 32 + threadIdx.x % 4 * 8;
}

__device__ __forceinline__ float& sum_of(Sums& sums, int half, int group, int i) {
    return sums.at[group * 32 / WIDE][group * 32 % WIDE / 2 + i / 2 * 4 + half * 2 + i % 2];
}

__device__ __forceinline__ void start_sums(Sums& sums, const ConvArgs& args, int column) {
    UNROLL
    for (int g = 0; g < GROUPS; ++g) {
        UNROLL
        for (int i = 0; i < 8; ++i) {
            const int channel = channel_of(column, g) + i;
            const float x = args.bias && channel < args.rule.channels ? args.bias[channel] : 0.f;
            sum_of(sums, 0, g, i) = sum_of(sums, 1, g, i) = x;
        }
    }
}

// Begins to copy a tile's first stages, all of which are free.
__device__ __forceinline__ void begin_tile(const Shared& shared, Rows rows, const ConvArgs& args,
                           const Phase& phase, int column) {
    prefetch_rows(rows, args, column);
    Loader loader(shared, rows, args, phase, column, 0);
    UNROLL
    for (int stage = 0; stage < AHEAD; ++stage) {
        if (stage < phase.stages) loader.load(stage);
        commit_copies();
    }
}

// Sums products over all of K, of a tile that has begun, and meanwhile looks up the next one's rows.
__device__ __forceinline__ void multiply_tile(Sums& sums, const Shared& shared, Rows rows, Rows next,
                              int first_of_next, int count, const ConvArgs& args,
                              const Phase& phase, int column) {
    start_sums(sums, args, column);
    Loader loader(shared, rows, args, phase, column, AHEAD);
    const Matrix a = matrix_at(shared.a + broadcast(threadIdx.x / WARPGROUP) * 64 * ROW_BYTES);
    const Matrix b = matrix_at(shared.b);
    int slot = 0, free = AHEAD;
    for (int stage = 0; stage < phase.stages; ++stage) {
        wait_for_copies<AHEAD - 1>();
        if (VEC * sizeof(Number) < 4) show_tensor_cores();
        block_barrier();  // the stage is there for all; all are done with the one before the last
        multiply_stage(sums, further(a, slot * A_STAGE), further(b, slot * B_STAGE));
        if (stage + AHEAD < phase.stages) loader.load(free);
        commit_copies();
        // Behind a barrier: all are done with the tile before this one, whose rows these replace.
        if (stage == 0) find_rows(next, args, phase, first_of_next, count);
        wait_for_products<1>();
        if (++slot == STAGES) slot = 0;
        if (++free == STAGES) free = 0;
    }
    wait_for_products<0>();
}

// 8 neighbouring channels of a pixel, two and two.
struct alignas(16) Eight { unsigned at[4]; };

__device__ __forceinline__ float number(const Eight& eight, int i) {
    return to_float(Number{static_cast<unsigned short>(eight.at[i / 2] >> (i % 2 * 16))});
}

// How 8 numbers are moved, OUT_VEC at once; `left` are the channels that there are from here on.
template <typename From, typename To>
__device__ __forceinline__ void move(const From* from, To* to, int left) {
    typedef Pack<Number, OUT_VEC> Some;
    UNROLL
    for (int i = 0; i < 8 / OUT_VEC; ++i)
        if (i * OUT_VEC < left)
            reinterpret_cast<Some*>(to)[i] = reinterpret_cast<const Some*>(from)[i];
}

// Groups whose loads are under way together: more would not fit into the registers.
constexpr int CHUNK = GROUPS < 2 ? 1 : BN > 128 ? 4 : 2;

struct Row {
    int pixel;
    Eight now[GROUPS];
};

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

// The new values of one of a thread's two rows; returns its part of the norm.
__device__ __forceinline__ float finish_row(Row& row, Sums& sums, const ConvArgs& args,
                                            int half, int column) {
    const long long pixel = row.pixel;
    const Number* before = args.output + pixel * args.step_out;
    const Number* residual = args.residual + pixel * args.step_residual;
    Norm norm = {0.f, false, args.rule.thresholds[row.pixel / args.rule.plane]};
    UNROLL
    for (int first = 0; first < GROUPS; first += CHUNK) {
        Eight old[CHUNK], added[CHUNK];
        UNROLL
        for (int g = 0; g < CHUNK; ++g) {
            const int channel = channel_of(column, first + g), left = args.rule.channels - channel;
            old[g] = added[g] = Eight{};
            move(before + channel, &old[g], left);
            if (args.residual) move(residual + channel, &added[g], left);
        }
        UNROLL
        for (int k = 0; k < CHUNK * 8; k += 2) {
            const int g = k / 8, i = k % 8, left = args.rule.channels - channel_of(column, first + g);
            const float x = sum_of(sums, half, first + g, i) + number(added[g], i);
            const float y = sum_of(sums, half, first + g, i + 1) + number(added[g], i + 1);
            Eight& now = row.now[first + g];
            now.at[i / 2] = rounded_pair(Number(), activate(x, args.rule), activate(y, args.rule));
            norm.add(number(now, i), number(old[g], i), i / OUT_VEC * OUT_VEC < left);
            norm.add(number(now, i + 1), number(old[g], i + 1), (i + 1) / OUT_VEC * OUT_VEC < left);
        }
    }
    return norm.total();
}

__device__ __forceinline__ void write_row(const Row& row, const ConvArgs& args, int column) {
    Number* output = args.output + static_cast<long long>(row.pixel) * args.step_out;
    UNROLL
    for (int g = 0; g < GROUPS; ++g) {
        const int channel = channel_of(column, g);
        move(&row.now[g], output + channel, args.rule.channels - channel);
    }
}

// The norms of the tile's rows over the channels of all blocks.
__device__ void add_over_blocks(float (&total)[2], const Shared& shared, int first, int columns) {
    UNROLL
    for (int half = 0; half < 2; ++half)
        if (threadIdx.x % 4 == 0) shared.total[first + half * 8] = total[half];
    cluster_barrier();
    UNROLL
    for (int half = 0; half < 2; ++half) {
        total[half] = 0.f;
        for (int block = 0; block < columns; ++block)
            total[half] += read_of_block(shared.total + first + half * 8, block);
    }
    cluster_has_read();  // before they are overwritten, or a block has gone
}

// Applies the rule to the tile.
__device__ __forceinline__ void finish_tile(Sums& sums, const Shared& shared, Rows tile,
                            const ConvArgs& args, int column, int columns) {
    const int first = threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4;
    Row rows[2];
    float total[2] = {0.f, 0.f};
    UNROLL
    for (int half = 0; half < 2; ++half) {
        rows[half].pixel = tile.pixel[first + half * 8];
        if (rows[half].pixel >= 0)
            total[half] = finish_row(rows[half], sums, args, half, column);
        total[half] = group_sum<4>(total[half]);
    }
    if (columns > 1) add_over_blocks(total, shared, first, columns);
    int listed = -1;  // the first two of four threads list a row each
    UNROLL
    for (int half = 0; half < 2; ++half) {
        const int pixel = rows[half].pixel;
        if (pixel < 0) continue;
        const int lane = pixel / args.rule.plane;
        if (!args.rule.fresh[lane]
            && !exceeds(total[half], args.rule, args.rule.thresholds[lane]))
            continue;
        write_row(rows[half], args, column);
        if (column == 0 && threadIdx.x % 4 == half) {
            args.rule.mask[pixel] = 1;
            listed = pixel;
        }
    }
    if (column == 0) list_changes(args.rule, listed >= 0, listed);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) convolve_sm90(ConvArgs args) {
    SHARED_MEMORY(memory);
    wait_for_earlier_kernels();
    const int columns = ceil_div(args.group_out, BN);  // the blocks of a cluster
    const int column = blockIdx.x % columns, clusters = gridDim.x / columns;
    const Shared shared = share(memory);
    for (int f = 0; f < args.phase_count; ++f) {
        const Phase phase = args.phases[f];  // loaded together with the count
        const int count = args.counts[f];
        int tile = blockIdx.x / columns;
        if (tile * BM >= count) continue;
        find_rows(rows_of(shared, args, 0), args, phase, tile * BM, count);
        block_barrier();
        begin_tile(shared, rows_of(shared, args, 0), args, phase, column);
        for (int turn = 0; tile * BM < count; turn ^= 1) {
            const Rows rows = rows_of(shared, args, turn), next = rows_of(shared, args, turn ^ 1);
            tile += clusters;
            Sums sums;
            multiply_tile(sums, shared, rows, next, tile * BM, count, args, phase, column);
            block_barrier();  // the stages are free
            if (tile * BM < count) begin_tile(shared, next, args, phase, column);
            finish_tile(sums, shared, rows, args, column, columns);
        }
        wait_for_copies<0>();
        block_barrier();  // the next phase's rows take the place of these
    }
}
