"""The CUDA kernels: sources (``.cu``, ``.cuh``), their arguments, loader and launcher.

What a kernel computes is said in its ``.cu`` file. `deltaconvert.backends.cuda` decides
which kernel runs when, and on what.
"""

if __name__ == "cuda":
    # Python was started in the repository's root, where this folder stands before
    # NVIDIA's package of the same name, which PyTorch and CuPy import: let them find it.
    from pkgutil import extend_path

    __path__ = extend_path(__path__, __name__)
