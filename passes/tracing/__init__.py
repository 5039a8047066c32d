"""What `trace` is made of.

`tracer` records calls, and `shape_tracer` with shapes known. `proxies` stand for tensors there, of
types that `result_types` tells, for the inputs that `input_parameters` names, in a copy that
`private_copy` makes, and `canvases` are tensors that become such when maps are written into them.
`find_state` refuses what no graph keeps: `attributes` are what it looks at, `compare_graphs` and
`shape_caches` its two proofs, `watch_counters` and `find_numbers` parts of both; `random_numbers`
refuses those. `explain` says why a model is refused.
"""
