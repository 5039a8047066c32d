// Whether a frame is worth more than its doors: one kernel in front of a graph's conditional part.
#include "common.cuh"
#include "device_graph.cuh"

constexpr int MOST_SOURCES = 8;

struct ConditionArgs {
    long long condition;  // the graph's
    const int* fresh;     // as in Rule
    const int* changed[MOST_SOURCES];  // of each door, how many pixels
    int lanes, doors;
};

extern "C" __global__ void decide(ConditionArgs args) {
    int any = args.fresh[args.lanes];
    for (int door = 0; door < args.doors; ++door) any |= *args.changed[door];
    if (threadIdx.x == 0) set_condition(args.condition, any != 0);
}
