"""The compiler: one file a pass, and the one list of them, in `compiler`.

What a pass has apart from it says so in its first lines (`functionalize` and the ``find_`` files);
passes share `annotate`, `emit` and `result`. `tracing` is what `trace` is made of, and `from_aten`
stands in its place for exported programs.
"""
