// Convolution at the candidates on Hopper's tensor cores, where many rows wait: with warps of their
// own that copy.
//
// The same tiles as in convolution_sm90.cu, K never cut. A block's first warpgroup copies all that
// the others need, as far ahead as there is room, also of the next tiles: stages of A and B and,
// behind a tile's last, old values and residual. All of it goes through one ring of slots, each with
// a barrier that says it is full, and one that says it is empty. So those that multiply wait for
// nothing but a full slot. Blocks of a cluster send each other their parts of the norm.
//
// Specialised as convolution_sm90.cu is; STAGES are the slots, and EARLY: old values and residual go
// through the ring, else they are read where they are.
#include "device_sm90.cuh"

constexpr int ROW_BYTES = 128;  // of a stage of A or B
constexpr int BK = ROW_BYTES / static_cast<int>(sizeof(NUMBER));
constexpr int THREADS = WARPGROUP, FIRST = THREADS, MULTIPLY = BM / 64 * WARPGROUP;
constexpr int BLOCK = THREADS + MULTIPLY;
constexpr bool STAY = false;  // nothing in the first cache: more is under way than it holds
#include "tile_sm90.cuh"

constexpr int SLOT = A_STAGE + B_STAGE;
constexpr int ROW_PACKS = BN / FEW;  // of a map
constexpr int TURNS = 2;  // tiles that rows and norms are kept of
// Registers a thread, where blocks share a multiprocessor: at first, as many as there are; then of
// those that copy, and, with what these give up, of those that multiply. Each a multiple of 8.
constexpr int REGISTERS = 65536 / (BLOCKS * BLOCK) / 8 * 8, OF_COPY = REGISTERS - 16;
constexpr int OF_MULTIPLY = REGISTERS + 16 * THREADS / MULTIPLY;
static_assert(sizeof(Number) == 2, "nobody would round A to tf32");
static_assert(BM * BN * sizeof(Number) <= SLOT, "a map fits where a stage does");
static_assert(STAGES >= 2, "slots: of two products one after the other, and of two maps");

// The slots, and where a thread is in them.
struct Ring {
    byte* memory;             // [STAGES][SLOT]: A and B of a stage, or a tile's part of a map
    Arrivals *full, *empty;   // [STAGES]
    int slot;
    unsigned round;           // its lowest bit

    __device__ __forceinline__ byte* here() const { return memory + slot * SLOT; }

    __device__ __forceinline__ void advance() {
        if (++slot == STAGES) slot = 0, round ^= 1;
    }

    // Of a barrier that no turn of has ended, the turn before the first seems to have.
    __device__ __forceinline__ void wait_until_empty() const {
        wait_for_arrival(empty + slot, round ^ 1);
    }

    __device__ __forceinline__ void wait_until_full() const {
        wait_for_arrival(full + slot, round);
    }
};

// Shared memory, in this order; `shared_bytes` in tiles.py counts the same.
struct Shared {
    Ring ring;
    Arrivals *known, *read;  // [TURNS]: rows that are there, and that nobody needs any more
    Arrivals* sent;          // [TURNS]: all parts of the norm
    float* bias;             // [BN]
    float* total;            // [TURNS][columns][BM]: of the norm, each block's part
    int* rows;               // [TURNS]
};

__device__ __forceinline__ Shared share(byte* memory, int columns) {
    Shared shared;
    Ring& ring = shared.ring;
    ring.memory = memory;
    ring.full = reinterpret_cast<Arrivals*>(memory + STAGES * SLOT);
    ring.empty = ring.full + STAGES;
    ring.slot = 0, ring.round = 0;
    shared.known = ring.empty + STAGES;
    shared.read = shared.known + TURNS;
    shared.sent = shared.read + TURNS;
    shared.bias = reinterpret_cast<float*>(shared.sent + TURNS);
    shared.total = shared.bias + BN;
    shared.rows = reinterpret_cast<int*>(shared.total + TURNS * columns * BM);
    return shared;
}

__device__ __forceinline__ TileRows rows_of(const Shared& shared, const ConvArgs& args, int turn) {
    return rows_at(shared.rows + turn * size_of_rows(args), args);
}

// By one thread.
__device__ __forceinline__ void start_barriers(const Shared& shared) {
    start_turns(shared.ring.full, STAGES, THREADS + 1);
    start_turns(shared.ring.empty, STAGES, MULTIPLY / WARP);
    start_turns(shared.known, TURNS, THREADS);
    start_turns(shared.read, TURNS, MULTIPLY / WARP);
    start_turns(shared.sent, TURNS, 1);
    show_turns();
}

__device__ __forceinline__ void copy_bias(const Shared& shared, const ConvArgs& args, int column) {
    for (int i = threadIdx.x; i < BN; i += BLOCK) {
        const int channel = column * BN + i;
        shared.bias[i] = args.bias && channel < args.rule.channels ? args.bias[channel] : 0.f;
    }
}

// Where a pack of a row of a map lies in its slot: four threads of a warp read from each of two
// rows at once, so that these must not share banks.
__device__ __forceinline__ int place_in_map(int row, int pack) {
    return (row * ROW_PACKS + (ROW_PACKS < 8 ? pack : pack ^ row % 2 * 4)) * PACK;
}

// Copies what a tile has of a map.
__device__ __forceinline__ void copy_map(byte* to, const Rows& rows, const Number* map, int step,
                                         int column, int channels) {
    const int pack = threadIdx.x % ROW_PACKS, channel = column * BN + pack * FEW;
    UNROLL_BY_4
    for (int i = 0; i < BM * ROW_PACKS / THREADS; ++i) {
        const int row = threadIdx.x / ROW_PACKS + i * (THREADS / ROW_PACKS);
        const int pixel = rows.pixel[row];
        const bool exists = pixel >= 0 && channel < channels;
        const Number* from = exists ? map + static_cast<long long>(pixel) * step + channel : map;
        copy_async<PACK, STAY>(to + place_in_map(row, pack), from, exists);
    }
}

__device__ __forceinline__ void produce_stages(Ring& ring, const Rows& rows, const ConvArgs& args,
                                               const Phase& phase, int column) {
    Gather gather(rows, args, phase, 0, 0);
    const Number* weight = args.weight + phase.weight
                         + static_cast<long long>(column) * phase.stages * BK * BN;
    NO_UNROLL
    for (int stage = 0; stage < phase.stages; ++stage) {
        ring.wait_until_empty();
        byte* const a = ring.here();
        Arrivals* const full = ring.full + ring.slot;
        if (threadIdx.x == 0) copy_all(a + A_STAGE, weight, B_STAGE, full);
        gather.look_up();
        gather.copy([&](int i) {
            const int row = threadIdx.x / PACKS_A_ROW + i * (THREADS / PACKS_A_ROW);
            const int at = threadIdx.x % PACKS_A_ROW * VEC * static_cast<int>(sizeof(Number));
            return reinterpret_cast<Number*>(a + swizzled(row, at));
        });
        if (BY_HAND) arrive(full);
        else arrive_behind_copies(full);
        weight += BK * BN;
        gather.advance();
        ring.advance();
    }
}

__device__ __forceinline__ void produce_maps(Ring& ring, const Rows& rows, const ConvArgs& args,
                                             int column) {
    NO_UNROLL
    for (int map = 0; map < (args.residual ? 2 : 1); ++map) {
        ring.wait_until_empty();
        Arrivals* const full = ring.full + ring.slot;
        copy_map(ring.here(), rows, map ? args.residual : args.output,
                 map ? args.step_residual : args.step_out, column, args.rule.channels);
        arrive_behind_copies(full);
        if (threadIdx.x == 0) arrive(full);  // in the place of a filter
        ring.advance();
    }
}

// What the first warpgroup does. The list is read two tiles ahead, the thresholds one.
__device__ __forceinline__ void produce(Shared& shared, const ConvArgs& args, int column,
                                        int columns) {
    const int clusters = gridDim.x / columns;
    int number = 0;  // of the block's tile
    NO_UNROLL
    for (int f = 0; f < args.phase_count; ++f) {
        const Phase phase = args.phases[f];  // loaded together with the count
        const int count = args.counts[f], start = args.phase_count == 1 ? 0 : phase.list;
        int tile = blockIdx.x / columns;
        int listed = listed_at(args, start, tile * BM);
        int further = listed_at(args, start, (tile + clusters) * BM);
        float threshold = threshold_of(args, listed, tile * BM, count);
        NO_UNROLL
        for (; tile * BM < count; ++number) {
            const int turn = number % TURNS;
            const TileRows rows = rows_of(shared, args, turn);
            wait_for_arrival(shared.read + turn, (number / TURNS & 1) ^ 1);
            find_rows(rows, args, phase, listed, tile * BM, count);
            if (threadIdx.x < BM) rows.threshold[threadIdx.x] = threshold;
            first_threads_barrier<THREADS>();
            arrive(shared.known + turn);
            tile += clusters;
            listed = further;
            further = listed_at(args, start, (tile + clusters) * BM);
            threshold = threshold_of(args, listed, tile * BM, count);
            produce_stages(shared.ring, rows, args, phase, column);
            if (EARLY) produce_maps(shared.ring, rows, args, column);
        }
    }
}

__device__ __forceinline__ void start_sums(Sums& sums, const Shared& shared) {
    UNROLL
    for (int g = 0; g < GROUPS; ++g) {
        UNROLL
        for (int i = 0; i < FEW; i += 4) {
            const Four x = *reinterpret_cast<const Four*>(shared.bias + channel_of(0, g) + i);
            UNROLL
            for (int j = 0; j < 4; ++j)
                sum_of(sums, 0, g, i + j) = sum_of(sums, 1, g, i + j) = x.at[j];
        }
    }
}

// All lanes of a warp have come here, and are done with what the barrier stands for.
__device__ __forceinline__ void release(Arrivals* barrier) {
    if (threadIdx.x % WARP == 0) arrive(barrier);
}

// Sums products over K. A slot is free once the products behind its own have begun.
__device__ __forceinline__ void multiply_tile(Sums& sums, Ring& ring, int stages) {
    const int group = broadcast((threadIdx.x - FIRST) / WARPGROUP);
    const Matrix a = matrix_at(ring.memory + group * 64 * ROW_BYTES);
    const Matrix b = matrix_at(ring.memory + A_STAGE);
    int before = -1;  // the last slot
    NO_UNROLL
    for (int stage = 0; stage < stages; ++stage) {
        ring.wait_until_full();
        show_tensor_cores();  // what others have copied, and this thread has seen arrive
        multiply_stage(sums, further(a, ring.slot * SLOT), further(b, ring.slot * SLOT));
        wait_for_products<1>();
        if (before >= 0) release(ring.empty + before);
        before = ring.slot;
        ring.advance();
    }
    wait_for_products<0>();
    if (before >= 0) release(ring.empty + before);
    settle(sums);
}

// Old values and residual in their slots.
struct Maps {
    const byte* at[2];
    Arrivals* empty[2];
};

// What the rule compares with and adds.
__device__ __forceinline__ void fetch(const Maps& maps, int map, int half, int group,
                                      const Number* from, Few& to, int left) {
    if (EARLY)
        to = *reinterpret_cast<const Few*>(
            maps.at[map] + place_in_map(first_row() + half * 8, group * 4 + threadIdx.x % 4));
    else
        move(from, &to, left);
}

__device__ __forceinline__ Maps wait_for_maps(Ring& ring, bool residual) {
    Maps maps = {};
    UNROLL
    for (int map = 0; map < 2; ++map) {
        if (!EARLY || (map && !residual)) continue;
        ring.wait_until_full();
        maps.at[map] = ring.here();
        maps.empty[map] = ring.empty + ring.slot;
        ring.advance();
    }
    return maps;
}

// The norms of the tile's rows over the channels of all blocks.
__device__ void add_over_blocks(float (&total)[2], const Shared& shared, int column, int columns,
                                int turn, unsigned parity) {
    const int first = first_row();
    float* const totals = shared.total + turn * columns * BM;
    NO_UNROLL
    for (int block = threadIdx.x % 4; block < columns; block += 4) {
        UNROLL
        for (int half = 0; half < 2; ++half)
            send(total[half], totals + column * BM + first + half * 8, shared.sent + turn, block);
    }
    wait_for_others(shared.sent + turn, parity);
    float sum[2] = {0.f, 0.f};  // of every fourth block: four threads have the same rows
    NO_UNROLL
    for (int block = threadIdx.x % 4; block < columns; block += 4) {
        UNROLL
        for (int half = 0; half < 2; ++half) sum[half] += totals[block * BM + first + half * 8];
    }
    UNROLL
    for (int half = 0; half < 2; ++half) total[half] = group_sum<4>(sum[half]);
}

// Applies the rule to the block's tile of a number.
__device__ __forceinline__ void finish_tile(Sums& sums, Shared& shared, const ConvArgs& args,
                                            int column, int columns, int number) {
    const int first = first_row(), turn = number % TURNS;
    const unsigned parity = number / TURNS & 1;
    int pixels[2];
    float total[2] = {0.f, 0.f}, threshold[2];
    wait_for_arrival(shared.known + turn, parity);
    const TileRows tile = rows_of(shared, args, turn);
    UNROLL
    for (int half = 0; half < 2; ++half) {
        pixels[half] = tile.pixel[first + half * 8];
        threshold[half] = tile.threshold[first + half * 8];
    }
    warp_barrier();
    release(shared.read + turn);
    const Maps maps = wait_for_maps(shared.ring, args.residual);
    UNROLL
    for (int half = 0; half < 2; ++half) {
        if (pixels[half] >= 0)
            total[half] = finish_row(sums, maps, args, pixels[half], threshold[half], half, column);
        total[half] = group_sum<4>(total[half]);
    }
    if (EARLY) show_tensor_cores();  // filters follow where maps were, by the proxy of these
    warp_barrier();
    if (EARLY) release(maps.empty[0]);
    if (EARLY && args.residual) release(maps.empty[1]);
    if (columns > 1) add_over_blocks(total, shared, column, columns, turn, parity);
    write_changes(sums, args, column, pixels, total, threshold);
}

// What the other warpgroups do.
__device__ __forceinline__ void consume(Shared& shared, const ConvArgs& args, int column,
                                        int columns) {
    const int clusters = gridDim.x / columns;
    int number = 0;
    NO_UNROLL
    for (int f = 0; f < args.phase_count; ++f) {
        const int stages = args.phases[f].stages, count = args.counts[f];
        NO_UNROLL
        for (int tile = blockIdx.x / columns; tile * BM < count; tile += clusters, ++number) {
            if (columns > 1 && threadIdx.x == FIRST)
                arrive_expecting(shared.sent + number % TURNS, columns * BM * 4);
            Sums sums;
            start_sums(sums, shared);
            multiply_tile(sums, shared.ring, stages);
            finish_tile(sums, shared, args, column, columns, number);
        }
    }
}

// Asks for the block's part of the filter, which no kernel writes; of many blocks, one does.
__device__ __forceinline__ void prefetch_filter(const ConvArgs& args, int column) {
    const Phase phase = args.phases[0];
    prefetch_all(args.weight + phase.weight
                     + static_cast<long long>(column) * phase.stages * BK * BN,
                 phase.stages * B_STAGE);
}

extern "C" __global__ void __launch_bounds__(BLOCK, BLOCKS) convolve_ahead(ConvArgs args) {
    SHARED_MEMORY(memory);
    const int columns = ceil_div(args.group_out, BN), column = blockIdx.x % columns;
    Shared shared = share(memory, columns);
    if (blockIdx.x < columns && threadIdx.x == 0) prefetch_filter(args, column);
    if (threadIdx.x == 0) start_barriers(shared);
    wait_for_earlier_kernels();
    let_next_kernel_begin();
    copy_bias(shared, args, column);
    if (columns > 1) cluster_barrier();
    else block_barrier();
    if (threadIdx.x < THREADS) {
        if (BLOCKS > 1) keep_registers<OF_COPY>();
        produce(shared, args, column, columns);
    } else {
        if (BLOCKS > 1) take_registers<OF_MULTIPLY>();
        consume(shared, args, column, columns);
    }
    if (columns > 1) cluster_barrier();  // others send to a block's memory as long as it is there
}
