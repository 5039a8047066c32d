"""The ``cuda`` backend: the kernels of `deltaconvert.cuda` on an NVIDIA GPU.

Importing this package imports neither CuPy nor CUDA: `create` and `unavailable` do.
"""

from __future__ import annotations

import functools

import torch

from deltaconvert.backends.cuda.backend import CudaBackend
from deltaconvert.config import Config
from deltaconvert.errors import UnsupportedError

__all__ = ["CudaBackend", "create", "unavailable"]

OLDEST = (7, 5)


def create(config: Config, device: torch.device) -> CudaBackend:
    """Make the backend for one program.

    Raises:
        UnsupportedError: there is no CuPy, or the device cannot run the kernels.
    """
    reason = unavailable(device)
    if reason:
        raise UnsupportedError(f"backend='cuda' cannot run: {reason}. Or use backend='reference'.")
    from deltaconvert.cuda.launcher import CupyLauncher

    return CudaBackend(config, device, CupyLauncher(device))


@functools.cache
def unavailable(device: torch.device) -> str:
    """Return why the kernels cannot run on a device, and the way out; nothing where they can.

    A kernel is compiled and run to find out.
    """
    if device.type != "cuda":
        return (f"the frames are on {device}; move model and frames to a CUDA device (in Python: "
                "the command line runs on the CPU)")
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        return (f"{torch.cuda.get_device_name(device)} has compute capability "
                f"{capability[0]}.{capability[1]}; the kernels need {OLDEST[0]}.{OLDEST[1]}")
    try:
        _try_kernel(device)
    except ImportError:
        toolkit = (torch.version.cuda or "13").split(".")[0]
        return f"CuPy is missing; pip install 'deltaconvert[cuda{toolkit}]'"
    except Exception as error:  # CuPy's own errors differ from version to version
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return f"a first kernel failed ({first}); CuPy and driver must fit each other"
    return ""


def _try_kernel(device: torch.device) -> None:
    from deltaconvert.cuda.arguments import EndArgs
    from deltaconvert.cuda.launcher import CupyLauncher, Launch
    from deltaconvert.cuda.loader import kernel

    bad, work = torch.ones(1, dtype=torch.int32, device=device), torch.zeros(8, device=device)
    args = EndArgs(bad=bad.data_ptr(), work=work.data_ptr(), counted=0, lanes=1)
    CupyLauncher(device).launch(
        Launch(kernel("masks.cu", "end_frame", torch.float32), args, (1, 1), 256, 64))
    if int(bad) != 0:
        raise RuntimeError("it ran, and did nothing")
