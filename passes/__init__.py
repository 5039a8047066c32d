"""The compiler: one file a pass, and the one list of them.

``compile_graph`` is free of shapes and happens once a model; ``specialize`` happens once
an input signature. Each constraint on the order stands beside the pass it binds.
"""
