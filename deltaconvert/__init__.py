"""deltaconvert: any trained CNN, computing only what changed from frame to frame."""

from pathlib import Path as _Path

# In a checkout `passes/` and `cuda/` lie beside this package, not in it as when installed.
if (_Path(__file__).parent.parent / "passes" / "__init__.py").is_file():
    __path__.append(str(_Path(__file__).parent.parent))

from deltaconvert.checking.report import Report
from deltaconvert.config import Config, NodeConfig
from deltaconvert.convert import convert
from deltaconvert.errors import (
    BrokenClipError,
    CheckpointError,
    ClipError,
    ConfigError,
    DamagedError,
    DeltaConvertError,
    FrameError,
    FrameShapeError,
    FrameTypeError,
    InputError,
    MismatchError,
    NotFiniteError,
    PickleError,
    StreamBusyError,
    TraceError,
    UnsafeError,
    UnsupportedError,
    VersionError,
    WriteError,
)
from deltaconvert.exported.reading import read_program
from deltaconvert.files import load, save
from deltaconvert.islands import IslandsModule, IslandsStream
from deltaconvert.module import DeltaModule
from deltaconvert.preprocessing import Preprocessing
from deltaconvert.stream import Stream
from deltaconvert.tune import Tuning, tune
from deltaconvert.validate import validate

__version__ = "0.1.0"

__all__ = [
    "BrokenClipError",
    "CheckpointError",
    "ClipError",
    "Config",
    "ConfigError",
    "DamagedError",
    "DeltaConvertError",
    "DeltaModule",
    "FrameError",
    "FrameShapeError",
    "FrameTypeError",
    "InputError",
    "IslandsModule",
    "IslandsStream",
    "MismatchError",
    "NodeConfig",
    "NotFiniteError",
    "PickleError",
    "Preprocessing",
    "Report",
    "Stream",
    "StreamBusyError",
    "TraceError",
    "Tuning",
    "UnsafeError",
    "UnsupportedError",
    "VersionError",
    "WriteError",
    "convert",
    "load",
    "read_program",
    "save",
    "tune",
    "validate",
]
