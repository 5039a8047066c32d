// Convolution at the candidates: an implicit GEMM over pixels packed from a list on the device,
// with the rule applied behind it.
//
// A tile is BM candidates times BN output channels. Its rows of A are gathered straight from the
// input map, tap by tap, by asynchronous copies in STAGES stages; rows of pixels that do not
// exist, and taps in the padding, are zeros. A transposed convolution has one list and one
// filter a phase, each with the taps that reach it.
//
// Specialised on: NUMBER, WINDOWED (gather.cuh), TENSOR (tensor cores or not), BM, BN, BK, STAGES;
// VEC, the numbers of A copied at once; FUSED: a block computes all output channels of its rows and applies the rule
// (OUT_VEC, the numbers moved at once there), or it leaves float32 sums to `pixels.cu`, which
// the K range may then be split for.
#include "common.cuh"
#if TENSOR
#include "multiply_tensor.cuh"
#else
#include "multiply_simt.cuh"
#endif
constexpr bool STAY = true;  // what is copied, in the first cache
#include "gather.cuh"

constexpr int WARPS = THREADS / WARP;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int LEAST_BLOCKS = 1;  // else a number would be spilled to have one block more
#else
constexpr int LEAST_BLOCKS = 0;  // as many as there are
#endif
constexpr int C_STEP = BN + 8;
constexpr int A_STAGE = BM * A_STEP, B_STAGE = BK * B_STEP;
constexpr int PIPELINE_BYTES = STAGES * (A_STAGE + B_STAGE) * static_cast<int>(sizeof(Number));
constexpr int C_BYTES = FUSED ? BM * C_STEP * 4 : 0;
constexpr int STAGE_AREA = PIPELINE_BYTES > C_BYTES ? PIPELINE_BYTES : C_BYTES;
constexpr int B_VEC = 16 / static_cast<int>(sizeof(Number));
constexpr int B_PACKS = BK * BN / B_VEC, PACKS_B_ROW = BN / B_VEC, B_COPIES = B_PACKS / THREADS;
static_assert(B_PACKS % THREADS == 0 && THREADS % PACKS_B_ROW == 0,
              "a stage of B is the same number of copies for every thread");

// Shared memory, in this order; `shared_bytes` in convolution.py counts the same.
struct Shared {
    Number* a;       // [STAGES][BM][A_STEP], and behind it
    Number* b;       // [STAGES][BK][B_STEP]
    float* c;        // [BM][C_STEP], over both, when they are done with
    Rows rows;       // pixels, and behind the totals what they read
    float* total;    // [BM]: of the norm
    int* changed;    // [2]: pixels of the tile, and where they go in the list
    Number* result;  // [BM][all channels of the output]: the new values
    int result_step;
};

__device__ Shared share(byte* memory, const ConvArgs& args) {
    Shared shared;
    shared.a = reinterpret_cast<Number*>(memory);
    shared.b = shared.a + STAGES * A_STAGE;
    shared.c = reinterpret_cast<float*>(memory);
    shared.rows.pixel = reinterpret_cast<int*>(memory + STAGE_AREA);
    shared.total = reinterpret_cast<float*>(shared.rows.pixel + BM);
    shared.rows.row = shared.rows.pixel + 2 * BM;
    shared.rows.col = shared.rows.row + BM * args.most_taps_y;
    shared.changed = shared.rows.col + BM * args.most_taps_x;
    // 16 bytes, so that rows of results are aligned whatever they are moved by.
    shared.result = reinterpret_cast<Number*>(shared.changed + 4);
    shared.result_step = ceil_div(args.rule.channels, 8) * 8 + 8;
    return shared;
}

// Copies the stages of A and B, one after the other.
struct Loader {
    const Shared& shared;
    Gather gather;
    const Number* weight;  // [phase][group][tile of BN channels][K padded to BK][BN]

    __device__ Loader(const Shared& shared, const ConvArgs& args, const Phase& phase, int group,
                      int column, int first_stage)
        : shared(shared), gather(shared.rows, args, phase, group, first_stage) {
        const long long tile = group * ceil_div(args.group_out, BN) + column;
        weight = args.weight + phase.weight
               + (tile * phase.stages + first_stage) * BK * BN + threadIdx.x * B_VEC;
    }

    __device__ void load(int slot) {
        Number* a = shared.a + slot * A_STAGE
                  + threadIdx.x / PACKS_A_ROW * A_STEP + threadIdx.x % PACKS_A_ROW * VEC;
        Number* b = shared.b + slot * B_STAGE
                  + threadIdx.x / PACKS_B_ROW * B_STEP + threadIdx.x % PACKS_B_ROW * B_VEC;
        gather.look_up();
        gather.copy([&](int i) { return a + i * (THREADS / PACKS_A_ROW) * A_STEP; });
        UNROLL
        for (int i = 0; i < B_COPIES; ++i)
            copy_async<16>(b + i * (THREADS / PACKS_B_ROW) * B_STEP,
                                    weight + i * THREADS * B_VEC, true);
        weight += BK * BN;
        gather.advance();
    }
};

// Sums products over the stages [first, last) of K.
__device__ void multiply_tile(Multiplier& product, const Shared& shared, const ConvArgs& args,
                              const Phase& phase, int group, int column, int first, int last) {
    Loader loader(shared, args, phase, group, column, first);
    product.clear();
    constexpr int AHEAD = STAGES - 1;
    int slot = 0, free = 0;
    NO_UNROLL
    for (int stage = first - AHEAD; stage < last; ++stage) {
        if (stage >= first) {
            wait_for_copies<STAGES - 2>();
            block_barrier();  // the stage is there for all, and the one before it is done with
            product.add(shared.a + slot * A_STAGE, shared.b + slot * B_STAGE);
            if (++slot == STAGES) slot = 0;
        }
        // Behind the multiplication, so that looking up addresses overlaps with it.
        if (stage + AHEAD < last) loader.load(free);
        commit_copies();
        if (++free == STAGES) free = 0;
    }
    wait_for_copies<0>();
}

#if FUSED

// A row is finished by a group of lanes of a warp, the same ones in every chunk of channels.
constexpr int ROW_LANES = BN / OUT_VEC < WARP ? BN / OUT_VEC : WARP;
constexpr int WARP_ROWS = WARP / ROW_LANES;
typedef Pack<Number, OUT_VEC> OutPack;

// Adds bias and residual, activates and rounds a chunk of BN channels; adds to the norm.
__device__ void finish_chunk(const Shared& shared, const ConvArgs& args, int group, int n) {
    const int warp = threadIdx.x / WARP, lane_id = threadIdx.x % WARP;
    for (int i = warp * WARP_ROWS + lane_id / ROW_LANES; i < BM; i += WARPS * WARP_ROWS) {
        const long long pixel = shared.rows.pixel[i];
        float sum = 0.f;
        for (int c = lane_id % ROW_LANES * OUT_VEC; c < BN; c += ROW_LANES * OUT_VEC) {
            if (pixel < 0 || n + c >= args.group_out) continue;
            const int channel = group * args.group_out + n + c;
            const float threshold = args.rule.thresholds[static_cast<int>(pixel) / args.rule.plane];
            OutPack added, now;
            const OutPack old =
                *reinterpret_cast<const OutPack*>(args.output + pixel * args.step_out + channel);
            if (args.residual)
                added = *reinterpret_cast<const OutPack*>(
                    args.residual + pixel * args.step_residual + channel);
            UNROLL
            for (int v = 0; v < OUT_VEC; ++v) {
                float x = shared.c[i * C_STEP + c + v];
                if (args.bias) x += args.bias[channel + v];
                if (args.residual) x += to_float(added.at[v]);
                from_float(activate(x, args.rule), now.at[v]);
                sum += score(to_float(now.at[v]), to_float(old.at[v]), threshold, args.rule.rms);
            }
            *reinterpret_cast<OutPack*>(shared.result + i * shared.result_step + channel) = now;
        }
        sum = group_sum<ROW_LANES>(sum);
        if (lane_id % ROW_LANES == 0) shared.total[i] += sum;
    }
}

// Writes the rows that changed, and says so.
__device__ void decide(const Shared& shared, const ConvArgs& args) {
    const int warp = threadIdx.x / WARP, lane_id = threadIdx.x % WARP;
    int* moved = shared.rows.row;  // what the tile reads is not needed any more
    warp_barrier();  // totals and results come from other lanes of this warp
    for (int i = warp * WARP_ROWS + lane_id / ROW_LANES; i < BM; i += WARPS * WARP_ROWS) {
        const long long pixel = shared.rows.pixel[i];
        if (pixel < 0) continue;
        const int lane = static_cast<int>(pixel) / args.rule.plane;
        if (!args.rule.fresh[lane]
            && !exceeds(shared.total[i], args.rule, args.rule.thresholds[lane]))
            continue;
        for (int c = lane_id % ROW_LANES * OUT_VEC; c < args.rule.channels;
             c += ROW_LANES * OUT_VEC)
            *reinterpret_cast<OutPack*>(args.output + pixel * args.step_out + c) =
                *reinterpret_cast<const OutPack*>(shared.result + i * shared.result_step + c);
        if (lane_id % ROW_LANES == 0) {
            mark(args.rule, static_cast<int>(pixel));
            moved[atomicAdd(shared.changed, 1)] = static_cast<int>(pixel);
        }
    }
    block_barrier();
    const int changed = *shared.changed;
    if (threadIdx.x == 0) shared.changed[1] = changed ? atomicAdd(args.rule.changed, changed) : 0;
    if (!args.rule.list) return;
    block_barrier();
    for (int i = threadIdx.x; i < changed; i += THREADS)
        args.rule.list[shared.changed[1] + i] = moved[i];
}

__device__ void compute_tile(const Shared& shared, const ConvArgs& args, const Phase& phase,
                             int tile, int count) {
    for (int i = threadIdx.x; i < BM; i += THREADS) shared.total[i] = 0.f;
    if (threadIdx.x == 0) *shared.changed = 0;
    find_rows(shared.rows, args, phase, listed_at(args, phase.list, tile * BM), tile * BM, count);
    block_barrier();
    for (int group = 0; group < args.groups; ++group) {
        for (int n = 0; n < args.group_out; n += BN) {
            Multiplier product;
            multiply_tile(product, shared, args, phase, group, n / BN, 0, phase.stages);
            block_barrier();  // C takes the place of A and B
            product.store(shared.c, C_STEP);
            block_barrier();
            finish_chunk(shared, args, group, n);
            block_barrier();  // A and B take the place of C
        }
    }
    decide(shared, args);
    block_barrier();  // the next tile's rows take the place of these
}

#endif

extern "C" __global__ void __launch_bounds__(THREADS, LEAST_BLOCKS) convolve(ConvArgs args) {
    SHARED_MEMORY(memory);
    wait_for_earlier_kernels();
    let_next_kernel_begin();
    NO_UNROLL
    for (int f = 0; f < args.phase_count; ++f) {
        const Phase phase = args.phases[f];  // loaded together with the count
        const int count = args.counts[f];
        if (count == 0) continue;
        const Shared shared = share(memory, args);
        const int tiles = ceil_div(count, BM);
#if FUSED
        for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x)
            compute_tile(shared, args, phase, tile, count);
#else
        const int across = ceil_div(args.group_out, BN);
        const int columns = args.groups * across;
        const int splits =
            splits_of(tiles * columns, gridDim.x, args.phase_count == 1 ? phase.stages : 1);
        for (int job = blockIdx.x; job < tiles * columns * splits; job += gridDim.x) {
            const int tile = job / (columns * splits), column = job / splits % columns;
            const int split = job % splits;
            find_rows(shared.rows, args, phase, listed_at(args, phase.list, tile * BM), tile * BM,
                      count);
            block_barrier();
            Multiplier product;
            multiply_tile(product, shared, args, phase, column / across, column % across,
                          phase.stages * split / splits, phase.stages * (split + 1) / splits);
            const long long step = static_cast<long long>(columns) * BN;
            const long long row = phase.list + f * BM
                                + (static_cast<long long>(split) * tiles + tile) * BM;
            product.store(args.parts + row * step + column * BN, step);
            block_barrier();  // the next tile's rows and stages take the place of these
        }
#endif
    }
}
