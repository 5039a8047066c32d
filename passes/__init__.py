"""The compiler: one file a pass, and the one list of them, in `compiler`."""
