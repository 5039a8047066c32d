// What follows a frame's doors: one kernel in front of a graph's conditional part.
#include "common.cuh"
#include "device_graph.cuh"
#include "work.cuh"

constexpr int MOST_SOURCES = 8;
// Dense frames do not tell what the sparse way would have had to do, so one is sparse now and then:
// seldom, where the last ones have shown that it needs to do nearly everything.
constexpr float FEWEST_FRAMES = 16.f, MOST_FRAMES = 256.f;

// The bodies of the graph's conditional part; where it has but one, whether that runs.
enum Way { SPARSE, DENSE, NEITHER };

struct ConditionArgs {
    long long condition;  // the graph's
    const int* fresh;     // as in Rule
    const int* bad;       // [lanes]: the frame holds what is not finite
    Work* work;           // of the last frame that compared
    const int* changed[MOST_SOURCES];  // of each door, how many pixels
    int lanes, doors;
    int ways, unused;     // 1 or 2
};

// A thread will do, and one warp is launched.
extern "C" __global__ void decide(ConditionArgs args) {
    wait_for_earlier_kernels();
    const int fresh = args.fresh[args.lanes];
    float pixels = 0.f;
    for (int door = 0; door < args.doors; ++door) pixels += *args.changed[door];
    const bool any = fresh || pixels > 0.f;
    if (args.ways == 1) {
        if (threadIdx.x == 0) set_condition(args.condition, any);
        return;
    }
    if (threadIdx.x != 0) return;
    Work& work = *args.work;
    // As much a pixel at the doors as in the last frame that had any, and was not dense; no more
    // than all.
    const float share = fminf(work.share * (work.doors > 0.f ? pixels / work.doors : 1.f), 1.f);
    bool dense = any && share >= work.break_even;
    for (int lane = 0; lane < args.lanes; ++lane) dense = dense && !args.bad[lane];
    const float patience = fmaxf(work.patience, FEWEST_FRAMES);
    if (!dense && any) {
        work.frames = 0.f;
        work.patience = FEWEST_FRAMES;
    } else if (dense && ++work.frames > patience) {
        dense = false;
        work.frames = 0.f;
        work.patience = fminf(2.f * patience, MOST_FRAMES);
    }
    if (dense) work.dense = 1.f;
    set_condition(args.condition, !any ? NEITHER : dense ? DENSE : SPARSE);
}
