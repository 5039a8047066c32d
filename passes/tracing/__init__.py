"""What `trace` is made of: tracers, what stands for tensors, and what a graph cannot keep."""
