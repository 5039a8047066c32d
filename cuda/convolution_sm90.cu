// Convolution at the candidates on Hopper's tensor cores, with the rule applied behind it.
//
// The same implicit GEMM as in convolution.cu, multiplied by whole warpgroups: each computes 64
// rows of a tile and BN channels, and finishes them in its registers. Where there are more
// channels, the blocks of a cluster have BN of them each for the same rows, and add up their parts
// of the norm. Where rows are few and sums long, K is cut as well: a cluster has SPLITS blocks for
// each BN channels, of which the first adds up what the others have summed, and finishes it.
//
// Filters lie as [phase][tile of BN channels][K in stages of BK][BN][BK], the channels of every
// QUAD in an order (`channel_order` in filters.py) with which a thread holds a pack of
// neighbours, and packs of 16 bytes permuted as in shared memory: so a stage's are copied by one
// instruction.
//
// Tensor cores cut off what tf32 has no bits for, and so would make every product a little smaller.
// float32 is rounded instead: filters once, A by the thread that copied it.
//
// Specialised on: NUMBER, where float is multiplied as tf32; BM, rows of a tile; BN; STAGES; VEC,
// the numbers of A copied at once; OUT_VEC, those moved at once behind it; RMS, the norm; BLOCKS,
// how many are resident; SPLITS; WINDOWED (gather.cuh); EARLY, whether what the rule compares with
// and adds is copied while the tile is multiplied, which takes shared memory, or only asked for;
// SCAN, whether each block finds the candidates itself (scan.cuh). With ALL (common.cuh), all pixels
// are candidates of the one phase, and nothing is compared: blocks of a cluster then share no norm.
#include "device_sm90.cuh"

constexpr int ROW_BYTES = 128;  // of a stage of A or B
constexpr int BK = ROW_BYTES / static_cast<int>(sizeof(NUMBER)), THREADS = BM / 64 * WARPGROUP;
constexpr int FIRST = 0;      // of the threads that multiply: all do
constexpr bool STAY = true;   // what is copied, in the first cache
#include "tile_sm90.cuh"
#include "scan.cuh"

constexpr int AHEAD = STAGES - 2;  // stages under way: one is multiplied, one may be still
static_assert(AHEAD >= 1, "stages: one to be copied, and two that are multiplied");

// Shared memory, in this order; `shared_bytes` in tiles.py counts the same.
struct Shared {
    byte* a;       // [STAGES][BM][ROW_BYTES], permuted
    byte* b;       // [STAGES][BN][ROW_BYTES], permuted
    Arrivals* arrived;  // [STAGES]: of B
    byte* early;   // [old values, residual][half][GROUPS][THREADS] packs, a thread's own
    float* total;  // [BM]: of the norm, this block's part
    int* rows;     // of this tile and of the next, `rows_of`; behind them `found_of`
};

constexpr int EARLY_BYTES = 2 * GROUPS * THREADS * PACK;  // of one of the two maps

__device__ __forceinline__ Shared share(byte* memory, const ConvArgs& args) {
    Shared shared;
    shared.a = memory;
    shared.b = memory + STAGES * A_STAGE;
    shared.early = shared.b + STAGES * B_STAGE;
    shared.total = reinterpret_cast<float*>(
        shared.early + (EARLY ? args.residual ? 2 * EARLY_BYTES : EARLY_BYTES : 0));
    shared.arrived = reinterpret_cast<Arrivals*>(shared.total + BM);
    shared.rows = reinterpret_cast<int*>(shared.arrived + (STAGES + 1) / 2 * 2);
    return shared;
}

__device__ __forceinline__ TileRows rows_of(const Shared& shared, const ConvArgs& args, int turn) {
    return rows_at(shared.rows + turn * size_of_rows(args), args);
}

__device__ __forceinline__ Found found_of(const Shared& shared, const ConvArgs& args) {
    return found_in(rows_of(shared, args, 2).pixel, args);
}

// The pixel of this thread's row of the tile that begins at `first`, if there is one.
__device__ __forceinline__ int pixel_of(const Shared& shared, const ConvArgs& args, int start,
                                        int first, int count) {
    const int row = static_cast<int>(threadIdx.x);
    if (ALL) return row < BM && first + row < count ? first + row : -1;
    if (!SCAN) return listed_at(args, start, first);
    return row < BM && first + row < count ? candidate(found_of(shared, args), args, first + row)
                                           : -1;
}

__device__ __forceinline__ void find_tile(const TileRows& rows, const ConvArgs& args,
                                          const Phase& phase, int listed, int first, int count) {
    const float threshold = threshold_of(args, listed, first, count);
    find_rows(rows, args, phase, listed, first, count);
    if (threadIdx.x < BM) rows.threshold[threadIdx.x] = threshold;
}

// Asks for what the rule will compare with and add, while the tile is multiplied.
__device__ void prefetch_rows(Rows rows, const ConvArgs& args, int column) {
    const long long pixel = rows.pixel[threadIdx.x / 2];
    if (pixel < 0) return;
    constexpr int LINE = ROW_BYTES / static_cast<int>(sizeof(Number));
    NO_UNROLL
    for (int n = threadIdx.x % 2 * LINE; n < BN; n += 2 * LINE) {
        const int channel = column * BN + n;
        if (channel >= args.rule.channels) return;
        if (!ALL) prefetch(args.output + pixel * args.step_out + channel);
        if (args.residual) prefetch(args.residual + pixel * args.step_residual + channel);
    }
}

// Where a pack that was copied early lies.
__device__ __forceinline__ byte* early_at(const Shared& shared, int map, int half, int group) {
    const int pack = (half * GROUPS + group) * THREADS + threadIdx.x;
    return shared.early + map * EARLY_BYTES + pack * PACK;
}

// Copies what the rule will compare with and add, while the tile is multiplied.
__device__ __forceinline__ void copy_early(const Shared& shared, const Rows& rows,
                                           const ConvArgs& args, int column) {
    UNROLL
    for (int half = 0; half < 2; ++half) {
        const long long pixel = rows.pixel[first_row() + half * 8];
        UNROLL
        for (int g = 0; g < GROUPS; ++g) {
            const int channel = channel_of(column, g);
            if (pixel < 0 || channel >= args.rule.channels) continue;
            if (!ALL)
                copy_async<PACK>(early_at(shared, 0, half, g),
                                 args.output + pixel * args.step_out + channel, true);
            if (args.residual)
                copy_async<PACK>(early_at(shared, 1, half, g),
                                 args.residual + pixel * args.step_residual + channel, true);
        }
    }
}

// Copies stages of A and B, one after the other.
struct Loader {
    Gather gather;
    const Number* weight;
    byte* a;
    byte* b;
    Arrivals* arrived;

    __device__ Loader(const Shared& shared, Rows rows, const ConvArgs& args,
                      const Phase& phase, int column, int first_stage)
        : gather(rows, args, phase, 0, first_stage) {
        const long long stage = static_cast<long long>(column) * phase.stages + first_stage;
        weight = args.weight + phase.weight + stage * BK * BN;
        a = shared.a;
        b = shared.b;
        arrived = shared.arrived;
    }

    // Where a copy of this thread's goes.
    __device__ __forceinline__ Number* place(int slot, int i) const {
        const int row = threadIdx.x / PACKS_A_ROW + i * (THREADS / PACKS_A_ROW);
        const int at = threadIdx.x % PACKS_A_ROW * VEC * static_cast<int>(sizeof(Number));
        return reinterpret_cast<Number*>(a + slot * A_STAGE + swizzled(row, at));
    }

    // Rounds what this thread has copied, and waited for, as far as tensor cores would cut it off.
    __device__ __forceinline__ void round(int slot) const {
        if constexpr (sizeof(Number) == 4) {
            UNROLL
            for (int i = 0; i < A_COPIES; ++i) {
                typedef Pack<unsigned, VEC> Bits;
                const Pack<Number, VEC> x =
                    *reinterpret_cast<const Pack<Number, VEC>*>(place(slot, i));
                Bits y;
                UNROLL
                for (int j = 0; j < VEC; ++j) y.at[j] = nearest_tf32(to_float(x.at[j]));
                *reinterpret_cast<Bits*>(place(slot, i)) = y;
            }
        }
    }

    __device__ void load(int slot) {
        if (threadIdx.x == 0) copy_all(b + slot * B_STAGE, weight, B_STAGE, arrived + slot);
        gather.look_up();
        gather.copy([&](int i) { return place(slot, i); });
        weight += BK * BN;
        gather.advance();
    }
};

// What this block of a cluster does: its channels, and its part of K.
struct Part { int column, columns, split; };

__device__ __forceinline__ int first_stage(const Phase& phase, int split) {
    return phase.stages * split / SPLITS;
}

__device__ __forceinline__ void start_sums(Sums& sums, const ConvArgs& args, const Part& part) {
    const float* bias = part.split == 0 ? args.bias : nullptr;
    typedef Pack<float, OUT_VEC < 4 ? OUT_VEC : 4> Some;
    constexpr int WIDTH = sizeof(Some) / sizeof(float);
    UNROLL
    for (int g = 0; g < GROUPS; ++g) {
        UNROLL
        for (int i = 0; i < FEW; i += WIDTH) {
            const int channel = channel_of(part.column, g) + i;
            Some x = {};
            if (bias && channel < args.rule.channels)
                x = *reinterpret_cast<const Some*>(bias + channel);
            UNROLL
            for (int j = 0; j < WIDTH; ++j)
                sum_of(sums, 0, g, i + j) = sum_of(sums, 1, g, i + j) = x.at[j];
        }
    }
}

// Sums products over the block's part of K; meanwhile looks up the next tile's rows. Loads begin
// AHEAD stages before products: one loop for both, because there is much code in it.
__device__ __forceinline__ void multiply_tile(Sums& sums, const Shared& shared, Rows rows,
                              TileRows next, int first_of_next, int count, const ConvArgs& args,
                              const Phase& phase, const Part& part, unsigned& parities) {
    const int first = first_stage(phase, part.split);
    const int stages = first_stage(phase, part.split + 1) - first;
    if (!EARLY && part.split == 0) prefetch_rows(rows, args, part.column);
    start_sums(sums, args, part);
    Loader loader(shared, rows, args, phase, part.column, first);
    const Matrix a = matrix_at(shared.a + broadcast(threadIdx.x / WARPGROUP) * 64 * ROW_BYTES);
    const Matrix b = matrix_at(shared.b);
    int slot = 0, free = 0;
    NO_UNROLL
    for (int stage = -AHEAD; stage < stages; ++stage) {
        if (stage >= 0) {
            wait_for_copies<AHEAD - 1>();
            loader.round(slot);
            show_tensor_cores();
            block_barrier();  // the stage is there for all, and the last but one is free
            wait_for_arrival(shared.arrived + slot, parities >> slot & 1u);
            parities ^= 1u << slot;
            multiply_stage(sums, further(a, slot * A_STAGE), further(b, slot * B_STAGE));
            if (++slot == STAGES) slot = 0;
        }
        if (stage + AHEAD < stages) loader.load(free);
        // Behind the tile's first stages, so that these do not wait for it.
        if (EARLY && stage == -1 && part.split == 0) copy_early(shared, rows, args, part.column);
        commit_copies();
        if (++free == STAGES) free = 0;
        if (stage < 0) continue;
        // Behind a barrier: all are done with the tile before this one, whose rows these replace.
        if (stage == 0 && first_of_next < count)
            find_tile(next, args, phase,
                      pixel_of(shared, args, phase.list, first_of_next, count), first_of_next,
                      count);
        wait_for_products<1>();
    }
    wait_for_copies<0>();
    wait_for_products<0>();
    settle(sums);
}

// Adds what the other splits have summed to the first one's sums, through the stages' memory, which
// all are done with.
__device__ __forceinline__ void add_splits(Sums& sums, const Shared& shared, const Part& part) {
    static_assert(BM * BN * 4 <= STAGES * (A_STAGE + B_STAGE), "sums fit where stages were");
    constexpr int FOURS = WIDE / 8;
    Four* mine = reinterpret_cast<Four*>(shared.a) + threadIdx.x;
    if (part.split > 0) {
        UNROLL
        for (int i = 0; i < ACROSS * FOURS; ++i) {
            const float* from = &sums.at[i / FOURS][i % FOURS * 4];
            mine[i * THREADS] = Four{from[0], from[1], from[2], from[3]};
        }
        show_tensor_cores();  // and the copies of the next tile's stages
    }
    cluster_barrier();
    if (part.split == 0) {
        NO_UNROLL
        for (int split = 1; split < SPLITS; ++split) {
            UNROLL
            for (int i = 0; i < ACROSS * FOURS; ++i) {
                const Four more =
                    read_of_block(mine + i * THREADS, split * part.columns + part.column);
                UNROLL
                for (int j = 0; j < 4; ++j) sums.at[i / FOURS][i % FOURS * 4 + j] += more.at[j];
            }
        }
    }
    cluster_has_read();  // before a block's stages are overwritten, or it has gone
}

// What the rule compares with and adds, from where it was copied to or from where it is.
__device__ __forceinline__ void fetch(const Shared& shared, int map, int half, int group,
                                      const Number* from, Few& to, int left) {
    if (EARLY) {
        if (left > 0) to = *reinterpret_cast<const Few*>(early_at(shared, map, half, group));
    } else {
        move(from, &to, left);
    }
}

// The norms of the tile's rows over the channels of all blocks.
__device__ void add_over_blocks(float (&total)[2], const Shared& shared, int first, int columns) {
    UNROLL
    for (int half = 0; half < 2; ++half)
        if (threadIdx.x % 4 == 0) shared.total[first + half * 8] = total[half];
    cluster_barrier();
    float sum[2] = {0.f, 0.f};  // of every fourth block: four threads have the same rows
    NO_UNROLL
    for (int block = threadIdx.x % 4; block < columns; block += 4) {
        UNROLL
        for (int half = 0; half < 2; ++half)
            sum[half] += read_of_block(shared.total + first + half * 8, block);
    }
    UNROLL
    for (int half = 0; half < 2; ++half) total[half] = group_sum<4>(sum[half]);
    cluster_has_read();  // before they are overwritten, or a block has gone
}

// Applies the rule to the tile.
__device__ __forceinline__ void finish_tile(Sums& sums, const Shared& shared, TileRows tile,
                            const ConvArgs& args, const Part& part) {
    const int column = part.column;
    if (part.split > 0) {
        if (!ALL && part.columns > 1) cluster_barrier(), cluster_has_read();  // as `add_over_blocks`
        return;
    }
    const int first = first_row();
    int pixels[2];
    float total[2] = {0.f, 0.f}, threshold[2];
    UNROLL
    for (int half = 0; half < 2; ++half) {
        pixels[half] = tile.pixel[first + half * 8];
        threshold[half] = tile.threshold[first + half * 8];
        if (pixels[half] >= 0)
            total[half] = finish_row(sums, shared, args, pixels[half], threshold[half], half,
                                     column);
        if (!ALL) total[half] = group_sum<4>(total[half]);
    }
    if (!ALL && part.columns > 1) add_over_blocks(total, shared, first, part.columns);
    write_changes(sums, args, column, pixels, total, threshold);
}

// Asks for the block's part of the filter, which no kernel writes; of many blocks, one does.
__device__ __forceinline__ void prefetch_filter(const ConvArgs& args, const Part& part) {
    const Phase phase = args.phases[0];
    const int first = first_stage(phase, part.split);
    const long long stage = static_cast<long long>(part.column) * phase.stages + first;
    prefetch_all(args.weight + phase.weight + stage * BK * BN,
                 (first_stage(phase, part.split + 1) - first) * B_STAGE);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) convolve_sm90(ConvArgs args) {
    SHARED_MEMORY(memory);
    const int columns = ceil_div(args.group_out, BN), blocks = columns * SPLITS;  // of a cluster
    const int rank = blockIdx.x % blocks, clusters = gridDim.x / blocks;
    const Part part = {rank % columns, columns, SPLITS == 1 ? 0 : rank / columns};
    if (blockIdx.x < blocks && threadIdx.x == 0) prefetch_filter(args, part);
    wait_for_earlier_kernels();
    if (!SCAN) let_next_kernel_begin();
    const Shared shared = share(memory, args);
    if (threadIdx.x == 0) start_arrivals(shared.arrived, STAGES);
    unsigned parities = 0;  // of the arrivals that are waited for next, a bit a stage
    NO_UNROLL
    for (int f = 0; f < args.phase_count; ++f) {
        const Phase phase = args.phases[f];  // loaded together with the count
        const int count = ALL ? args.capacity
                        : SCAN ? scan(found_of(shared, args),
                                      reinterpret_cast<unsigned*>(shared.a), args)
                               : args.counts[f];
        if (SCAN && blockIdx.x == 0 && threadIdx.x == 0) args.counts[f] = count;
        int tile = blockIdx.x / blocks;
        // With one phase, a list begins at its beginning: no answer is waited for.
        const int listed = pixel_of(shared, args, args.phase_count == 1 ? 0 : phase.list,
                                    tile * BM, count);
        if (tile * BM >= count) continue;
        find_tile(rows_of(shared, args, 0), args, phase, listed, tile * BM, count);
        block_barrier();
        NO_UNROLL
        for (int turn = 0; tile * BM < count; turn ^= 1) {
            const TileRows rows = rows_of(shared, args, turn);
            const TileRows next = rows_of(shared, args, turn ^ 1);
            tile += clusters;
            Sums sums;
            multiply_tile(sums, shared, rows, next, tile * BM, count, args, phase, part,
                          parities);
            block_barrier();  // the stages are free
            // Not before: its blocks would come to where these have work, rather than elsewhere.
            if (SCAN && tile * BM >= count) let_next_kernel_begin();
            if (SPLITS > 1) add_splits(sums, shared, part);
            finish_tile(sums, shared, rows, args, part);
        }
        block_barrier();  // the next phase's rows take the place of these
    }
}
