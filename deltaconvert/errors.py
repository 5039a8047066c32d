"""Every error that deltaconvert raises on purpose.

Each message says what was wrong, where, why and what to do; the command line
prints it without a stack trace. ``exit_code`` is the command line's.
"""

import sys


class DeltaConvertError(Exception):
    """Base of all errors of this package."""

    exit_code = 2


class InputError(DeltaConvertError):
    """Something handed in is wrong: a frame, a file, an argument."""


class ConfigError(InputError):
    """A setting has a value that makes no sense, or names a node that is not there."""


class CheckpointError(InputError):
    """A file of weights or a compiled model cannot be used."""


class DamagedError(CheckpointError):
    """A file is cut off, was altered, or is not what it says it is: get it again."""


class VersionError(CheckpointError):
    """A file has another format version than this release reads: update, or write it again."""


class UnsafeError(CheckpointError):
    """A file asks for more than numbers: a function that none may name, memory without end."""


class PickleError(UnsafeError):
    """A file of weights would run code when it is read, and was not opened."""


class MismatchError(CheckpointError):
    """Weights whose names or shapes are not the model's."""


class ClipError(InputError):
    """A video or a folder of pictures cannot be read, breaks off, or changes its size."""


class BrokenClipError(ClipError):
    """A clip breaks off, or changes its size, behind frames that were right and count."""


class WriteError(InputError):
    """A file or folder cannot be written: missing, not permitted, or the disk is full."""


class FrameError(InputError):
    """A frame was refused; the stream is as it was before the call."""


class FrameShapeError(FrameError):
    """A frame has a size, channels or a rank that the network cannot take."""


class FrameTypeError(FrameError):
    """A frame is no tensor, or is of another dtype or on another device than the weights."""


class NotFiniteError(FrameError):
    """A frame holds NaN or infinity; the stream is as it was before the call."""


class StreamBusyError(DeltaConvertError):
    """A second thread called a stream while the first was still inside it."""


class UnsupportedError(DeltaConvertError):
    """The model, a device or an operator is beyond what this version can do."""

    exit_code = 3


class TraceError(UnsupportedError):
    """The model cannot be traced; the message names the user's own line."""


class RegistryError(DeltaConvertError):
    """An operator or a spelling was registered twice."""


class CheckError(DeltaConvertError):
    """What was to be measured does not do what it should; the message holds the report."""

    exit_code = 1


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory; on a CPU PyTorch has no type for that."""
    return (isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
            or "can't allocate memory" in str(error))


def missing_package(error: BaseException) -> str:
    """Name the package that is not installed, where that is what an error says, and what to do.

    Where a module of a package or of Python itself is not there, the installation is broken.
    """
    name = (isinstance(error, ModuleNotFoundError) and error.name) or "."
    if "." in name or name in sys.stdlib_module_names:
        return ""
    return f"the package {name}, which is not installed. Do: pip install {name}"
