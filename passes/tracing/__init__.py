"""What `trace` is made of.

`tracer` records calls, and `shape_tracer` with shapes known. `proxies` stand for tensors there, of
types that `result_types` tells, for the inputs that `input_parameters` names. `find_state` refuses
what no graph keeps: `attributes` are what it looks at, `compare_graphs` and `shape_caches` its two
proofs, `watch_counters` and `find_numbers` parts of both. `explain` says why a model is refused.
"""
