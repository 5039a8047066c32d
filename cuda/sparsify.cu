// The door in: which pixels of a frame changed, found while it is checked, in one read.
//
// Specialised on NUMBER, and PACKS: of 16 bytes, that the channels of a strip are; 0 where they are
// no few whole ones.
#include "whole.cuh"

constexpr int THREADS = 256;
constexpr int EACH = 4;  // pixels of a thread, whose loads are under way together
constexpr int STRIP = 8;  // pixels of a thread that are first compared as they lie in memory
constexpr int BLOCK = 8;

struct FrameArgs {
    Rule rule;
    const Number* frame;
    Number* value;
    // What examine_* says to replace_*: [lanes * plane]; of values that are no maps
    // float [lanes, gridDim.x], the grid's parts of the norm.
    byte* marks;
    int* bad;     // [lanes]: the frame holds what is not finite
    long long stride_lane, stride_channel, stride_row, stride_col;  // of the frame
    int step;     // numbers from a pixel of the value to the next
    int lanes, height, width;
    float threshold, cap;  // of the block test
    int packed;   // frame and value lie alike, without gaps, and strips are whole packs
    int unused;
};

__device__ __forceinline__ const Number* frame_pixel(const FrameArgs& args, int lane, int y, int x) {
    return args.frame + lane * args.stride_lane + y * args.stride_row + x * args.stride_col;
}

__device__ __forceinline__ bool is_finite(float x) { return fabsf(x) <= 3.402823466e38f; }

// Whether a pixel's change exceeds the lane's threshold.
// Not inline: few strips come here, and registers are short.
__device__ __noinline__ bool exceeds_at(const FrameArgs& args, int pixel) {
    const int lane = pixel / args.rule.plane;
    const Number* now =
        frame_pixel(args, lane, pixel / args.width % args.height, pixel % args.width);
    const Number* old = args.value + static_cast<long long>(pixel) * args.step;
    const float threshold = args.rule.thresholds[lane];
    float sum = 0.f;
    for (int c = 0; c < args.rule.channels; ++c) {
        const float x = to_float(now[c * args.stride_channel]);
        if (!is_finite(x)) args.bad[lane] = 1;
        sum += score(x, to_float(old[c]), threshold, args.rule.rms);
    }
    return exceeds(sum, args.rule, threshold);
}

#if PACKS

// Which strips of the warp, whose first pixel is `first`, are not the same in every bit, a lane
// each. What is the same did not change, and is finite, as all values are: most of a frame. A warp
// reads packs side by side, and then each lane looks for those of its own strip.
__device__ __forceinline__ bool strip_differs(const FrameArgs& args, int first, int total) {
    const int lane = threadIdx.x % WARP;
    const int left = (total - first) / STRIP * PACKS;  // of whole strips, from here on
    const long long start = static_cast<long long>(first) * args.step;
    const uint4* now = reinterpret_cast<const uint4*>(args.frame + start);
    const uint4* old = reinterpret_cast<const uint4*>(args.value + start);
    uint4 x[PACKS], y[PACKS];
    UNROLL
    for (int i = 0; i < PACKS; ++i) {
        const int pack = i * WARP + lane;
        x[i] = pack < left ? now[pack] : uint4{0, 0, 0, 0};
        y[i] = pack < left ? old[pack] : uint4{0, 0, 0, 0};
    }
    unsigned found = 0;
    UNROLL
    for (int i = 0; i < PACKS; ++i) {
        const unsigned differing = ballot(((x[i].x ^ y[i].x) | (x[i].y ^ y[i].y)
                                           | (x[i].z ^ y[i].z) | (x[i].w ^ y[i].w)) != 0);
        const int at = lane * PACKS - i * WARP;  // of the strip's first pack among these
        if (at > -PACKS && at < WARP) found |= at < 0 ? differing << -at : differing >> at;
    }
    return found & ((1u << PACKS) - 1u);
}

__device__ void examine_strips(const FrameArgs& args) {
    const int total = args.lanes * args.rule.plane, step = gridDim.x * THREADS * STRIP;
    const int warp = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP;
    for (int start = warp * WARP * STRIP; start < total; start += step) {
        const bool differs = strip_differs(args, start, total);
        const int first = start + threadIdx.x % WARP * STRIP;
        if (first + STRIP <= total && !differs) {
            *reinterpret_cast<uint2*>(args.marks + first) = uint2{0, 0};
            continue;
        }
        for (int pixel = first; pixel < first + STRIP && pixel < total; ++pixel)
            args.marks[pixel] = exceeds_at(args, pixel);
    }
}

#endif

// Marks the pixels whose change exceeds the lane's threshold.
extern "C" __global__ void __launch_bounds__(THREADS, 3) examine_pixels(FrameArgs args) {
    wait_for_earlier_kernels();
    let_next_kernel_begin();
    const int total = args.lanes * args.rule.plane;
#if PACKS
    if (args.packed) {
        examine_strips(args);
        return;
    }
#endif
    for (int first = blockIdx.x * THREADS * EACH; first < total;
         first += gridDim.x * THREADS * EACH) {
        const Number* now[EACH];
        const Number* old[EACH];
        float threshold[EACH], sum[EACH];
        bool finite[EACH];
        UNROLL
        for (int e = 0; e < EACH; ++e) {
            const int index = first + e * THREADS + threadIdx.x;
            const int pixel = index < total ? index : 0;
            const int lane = pixel / args.rule.plane;
            now[e] = frame_pixel(args, lane, pixel / args.width % args.height, pixel % args.width);
            old[e] = args.value + static_cast<long long>(pixel) * args.step;
            threshold[e] = args.rule.thresholds[lane];
            sum[e] = 0.f;
            finite[e] = true;
        }
        for (int c = 0; c < args.rule.channels; ++c) {
            float x[EACH], y[EACH];
            UNROLL
            for (int e = 0; e < EACH; ++e) {
                x[e] = to_float(now[e][c * args.stride_channel]);
                y[e] = to_float(old[e][c]);
            }
            UNROLL
            for (int e = 0; e < EACH; ++e) {
                finite[e] = finite[e] && is_finite(x[e]);
                sum[e] += score(x[e], y[e], threshold[e], args.rule.rms);
            }
        }
        UNROLL
        for (int e = 0; e < EACH; ++e) {
            const int pixel = first + e * THREADS + threadIdx.x;
            if (pixel >= total) continue;
            if (!finite[e]) args.bad[pixel / args.rule.plane] = 1;
            args.marks[pixel] = exceeds(sum[e], args.rule, threshold[e]);
        }
    }
}

// Marks the pixels that changed at all, in the blocks of 8x8 whose mean change exceeds the
// threshold, or that hold a pixel whose change exceeds the cap. A warp a block.
extern "C" __global__ void __launch_bounds__(THREADS) examine_blocks(FrameArgs args) {
    wait_for_earlier_kernels();
    let_next_kernel_begin();
    const int across = ceil_div(args.width, BLOCK), down = ceil_div(args.height, BLOCK);
    const int lane_id = threadIdx.x % WARP;
    const int warps = gridDim.x * (THREADS / WARP);
    const float channels = args.rule.channels;
    for (int block = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP;
         block < args.lanes * across * down; block += warps) {
        const int lane = block / (across * down);
        const int top = block / across % down * BLOCK, left = block % across * BLOCK;
        const float pixels = static_cast<float>(min(BLOCK, args.height - top)
                                                * min(BLOCK, args.width - left));
        float block_norm = 0.f, pixel_norm[2] = {0.f, 0.f};
        bool differs[2] = {false, false}, finite = true;
        for (int c = 0; c < args.rule.channels; ++c) {
            float change = 0.f;
            UNROLL
            for (int half = 0; half < 2; ++half) {
                const int y = top + half * 4 + lane_id / BLOCK, x = left + lane_id % BLOCK;
                if (y >= args.height || x >= args.width) continue;
                const float now =
                    to_float(frame_pixel(args, lane, y, x)[c * args.stride_channel]);
                const long long place = static_cast<long long>(lane) * args.rule.plane
                                        + y * args.width + x;
                const float d = now - to_float(args.value[place * args.step + c]);
                finite = finite && is_finite(now);
                differs[half] = differs[half] || d != 0.f;
                change += d;
                pixel_norm[half] = args.rule.rms ? pixel_norm[half] + d * d
                                                 : fmaxf(pixel_norm[half], fabsf(d));
            }
            const float mean = group_sum<WARP>(change) / pixels;
            block_norm = args.rule.rms ? block_norm + mean * mean : fmaxf(block_norm, fabsf(mean));
        }
        float largest = fmaxf(pixel_norm[0], pixel_norm[1]);
        if (args.rule.rms) {
            block_norm = sqrtf(block_norm / channels);
            largest = sqrtf(largest / channels);
        }
        if (ballot(!finite) && lane_id == 0) args.bad[lane] = 1;
        const bool moved = ballot(largest > args.cap) != 0 || block_norm > args.threshold;
        UNROLL
        for (int half = 0; half < 2; ++half) {
            const int y = top + half * 4 + lane_id / BLOCK, x = left + lane_id % BLOCK;
            if (y < args.height && x < args.width)
                args.marks[lane * args.rule.plane + y * args.width + x] = moved && differs[half];
        }
    }
}

// Replaces the marked pixels, and all of a fresh lane; none of a lane that is refused.
extern "C" __global__ void __launch_bounds__(THREADS) replace_pixels(FrameArgs args) {
    wait_for_earlier_kernels();
    let_next_kernel_begin();
    const int total = args.lanes * args.rule.plane;
    const int rounds = ceil_div(total, gridDim.x * THREADS * STRIP);
    const bool any_fresh = args.rule.fresh[args.lanes] != 0;
    for (int round = 0; round < rounds; ++round) {
        const int warp = (round * gridDim.x + blockIdx.x) * (THREADS / WARP) + threadIdx.x / WARP;
        const int first = warp * WARP * STRIP, lane_id = threadIdx.x % WARP;
        // A look at all marks of the warp's pixels, most of which are none.
        const int own = first + lane_id * STRIP;
        bool some = any_fresh;
        if (own + STRIP <= total) {
            const uint2 marks = *reinterpret_cast<const uint2*>(args.marks + own);
            some = some || (marks.x | marks.y) != 0;
        } else {
            some = some || own < total;
        }
        if (!ballot(some)) continue;
        for (int i = 0; i < STRIP; ++i) {
            const int pixel = first + i * WARP + lane_id;
            bool moves = false;
            if (pixel < total) {
                const int lane = pixel / args.rule.plane;
                moves = !args.bad[lane] && (args.marks[pixel] || args.rule.fresh[lane]);
            }
            if (moves) {
                const Number* now = frame_pixel(args, pixel / args.rule.plane,
                                                pixel / args.width % args.height,
                                                pixel % args.width);
                Number* value = args.value + static_cast<long long>(pixel) * args.step;
                for (int c = 0; c < args.rule.channels; ++c)
                    value[c] = now[c * args.stride_channel];
                mark(args.rule, pixel);
            }
            list_changes(args.rule, moves, pixel);
        }
    }
}

// Values that are no maps, whose numbers lie one behind the other: a lane, blockIdx.y, changes as
// one pixel.
extern "C" __global__ void __launch_bounds__(THREADS) examine_values(FrameArgs args) {
    SHARED_MEMORY(memory);
    wait_for_earlier_kernels();
    let_next_kernel_begin();
    const int lane = blockIdx.y;
    const Number* now = args.frame + lane * args.stride_lane;
    const Number* old = args.value + static_cast<long long>(lane) * args.step;
    const float threshold = args.rule.thresholds[lane];
    float sum = 0.f;
    bool finite = true;
    UNROLL_BY_4
    for (long long c = blockIdx.x * THREADS + threadIdx.x; c < args.rule.channels;
         c += gridDim.x * THREADS) {
        const float x = to_float(now[c]);
        finite = finite && is_finite(x);
        sum += score(x, to_float(old[c]), threshold, args.rule.rms);
    }
    if (!finite) args.bad[lane] = 1;
    sum = block_sum(sum, reinterpret_cast<float*>(memory));
    if (threadIdx.x == 0)
        reinterpret_cast<float*>(args.marks)[lane * gridDim.x + blockIdx.x] = sum;
}

// Decides, each block for itself, and replaces; with the same grid.
extern "C" __global__ void __launch_bounds__(THREADS) replace_values(FrameArgs args) {
    SHARED_MEMORY(memory);
    wait_for_earlier_kernels();
    let_next_kernel_begin();
    const int lane = blockIdx.y;
    if (args.bad[lane]) return;
    float sum = 0.f;
    for (int part = threadIdx.x; part < gridDim.x; part += THREADS)
        sum += reinterpret_cast<const float*>(args.marks)[lane * gridDim.x + part];
    const bool changed = replaces(args.rule, lane,
                                  block_sum(sum, reinterpret_cast<float*>(memory)));
    if (blockIdx.x == 0) tell(args.rule, changed, lane);
    if (!changed) return;
    const Number* now = args.frame + lane * args.stride_lane;
    Number* value = args.value + static_cast<long long>(lane) * args.step;
    UNROLL_BY_4
    for (long long c = blockIdx.x * THREADS + threadIdx.x; c < args.rule.channels;
         c += gridDim.x * THREADS)
        value[c] = now[c];
}
