"""The CUDA backend's place: kernel sources (``.cu``, ``.cuh``), their loader and launchers.

This version has no CUDA kernels. On a GPU the reference backend runs: correct,
plain PyTorch, and not made to be fast.
"""

if __name__ == "cuda":
    # Python was started in the repository's root, where this folder stands before
    # NVIDIA's package of the same name, which PyTorch and CuPy import: let them find it.
    from pkgutil import extend_path

    __path__ = extend_path(__path__, __name__)
