// What follows a frame's doors: one kernel in front of a graph's conditional part.
#include "common.cuh"
#include "device_graph.cuh"
#include "work.cuh"

constexpr int MOST_SOURCES = 8;

// The bodies of the graph's conditional part; where it has but one, whether that runs.
enum Way { SPARSE, DENSE, NEITHER };

struct ConditionArgs {
    long long condition;  // the graph's
    const int* fresh;     // as in Rule
    Work* work;           // of the last frame
    const int* changed[MOST_SOURCES];  // of each door, how many pixels
    int lanes, doors;
    float break_even;     // the share of work from which on the dense way is taken
    int ways;             // 1 or 2
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
    // As much a pixel at the doors as in the last frame that had any.
    const float share = args.work->share * (args.work->doors > 0.f ? pixels / args.work->doors : 1.f);
    const bool dense = any && share >= args.break_even;
    if (threadIdx.x != 0) return;
    if (dense) args.work->dense = 1.f;
    set_condition(args.condition, !any ? NEITHER : dense ? DENSE : SPARSE);
}
