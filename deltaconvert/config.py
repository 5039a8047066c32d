"""The settings of a conversion: one frozen dataclass, the same names as the CLI's flags."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from deltaconvert.errors import ConfigError

Norm = Literal["max", "rms"]
ThresholdUnit = Literal["absolute", "std"]
InputTest = Literal["pixel", "block"]
Precision = Literal["float32", "float16", "bfloat16"]

# Each is a module of `deltaconvert.backends`, imported when it is used.
BACKENDS = ("cpu", "cuda", "paper", "reference")


@dataclass(frozen=True)
class NodeConfig:
    """What one node may have for itself; ``None`` takes the model's setting."""

    threshold: float | None = None
    norm: Norm | None = None


@dataclass(frozen=True)
class Config:
    """How a model is converted.

    Args:
        backend: ``"auto"`` (``cpu`` on a CPU, ``cuda`` on a GPU that can run it, ``reference``
            elsewhere), ``"cpu"``, ``"cuda"``, ``"reference"`` or ``"paper"``.
        dtype: in which maps and weights are kept, ``"float32"``, ``"float16"`` or
            ``"bfloat16"``, whatever the model is in; sums are float32 at least, frames and
            outputs stay what the model takes and returns. ``None`` is the model's own.
        threshold: what a node may hold back, as the norm over channels at a pixel.
            0 means exact: every change is passed on. Nodes with no local multiply-adds
            behind them (heads, poolings) are exact unless named in ``nodes``: there is
            nothing to save.
        threshold_unit: ``"absolute"``, in units of the node's own value, or
            ``"std"``, in standard deviations of the node's value in a lane's first
            frame. Input thresholds are always absolute.
        norm: over the channels of a pixel: ``"max"``, the largest magnitude, or
            ``"rms"``, the root mean square.
        nodes: settings for single nodes, by the node's name or module path, or a
            pattern of either (``{"layer1.*": NodeConfig(threshold=0.1)}``). A bare
            number is a threshold. The last match wins. Of nodes that run as one (an
            attention), what is said of the last counts, or else the largest threshold.
        input_threshold: the same for the frames that come in, in the frame's units; for all other
            inputs too, a state that is fed back among them.
        input_test: ``"pixel"`` compares pixel by pixel; ``"block"`` compares the
            mean change of 8x8 blocks, whose pixels are held or replaced together.
        input_cap: with ``"block"``, the norm that no held pixel may exceed; ``None``
            is eight times ``input_threshold``.
        dense_fallback: where much is to be done, whole maps are computed densely: on ``cuda`` in
            frames of which the device finds so, all nodes at all pixels, and none compared, past
            a share that is measured once a program (and estimated, the same in every run, under
            ``torch.use_deterministic_algorithms``); on ``cpu`` convolutions, in lanes, where this
            machine was found to be faster so (mostly it is not; measured once, and kept). Last
            bits depend on the way.
        threads: threads of the ``cpu`` backend; ``None`` takes ``torch.get_num_threads()``.
        graphs: of the ``cuda`` backend: a frame is one CUDA graph, where nothing prevents it.
    """

    backend: str = "auto"
    dtype: Precision | None = None
    threshold: float = 0.0
    threshold_unit: ThresholdUnit = "absolute"
    norm: Norm = "max"
    nodes: Mapping[str, NodeConfig] = field(default_factory=dict)
    input_threshold: float = 0.0
    input_test: InputTest = "pixel"
    input_cap: float | None = None
    dense_fallback: bool = True
    threads: int | None = None
    graphs: bool = True

    def __post_init__(self) -> None:
        """Refuse values that make no sense.

        Raises:
            ConfigError: naming the setting, its value and what it may be.
        """
        if self.backend not in ("auto", *BACKENDS):
            raise ConfigError(f"backend={self.backend!r}: choose auto, {', '.join(BACKENDS)}.")
        _check_amount("threshold", self.threshold)
        _check_amount("input_threshold", self.input_threshold)
        if self.input_cap is not None:
            _check_amount("input_cap", self.input_cap)
        _check_choice("threshold_unit", self.threshold_unit, ThresholdUnit)
        _check_choice("norm", self.norm, Norm)
        if self.dtype is not None:
            _check_choice("dtype", self.dtype, Precision)
        _check_choice("input_test", self.input_test, InputTest)
        for name in ("dense_fallback", "graphs"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}={getattr(self, name)!r}: give True or False.")
        if self.threads is not None and (type(self.threads) is not int or self.threads < 1):
            raise ConfigError(f"threads={self.threads!r}: give at least 1, or None for PyTorch's.")
        if not isinstance(self.nodes, Mapping):
            raise ConfigError(f"nodes={self.nodes!r}: give a dict, as {{'layer4.*': 0.5}}.")
        object.__setattr__(self, "nodes", {k: _node_config(k, v) for k, v in self.nodes.items()})

    def replace(self, **changes: Any) -> Config:
        """Return a copy with some settings changed.

        Raises:
            ConfigError: for a setting that does not exist or has a wrong value.
        """
        known = [f.name for f in dataclasses.fields(self)]
        unknown = sorted(set(changes) - set(known))
        if unknown:
            raise ConfigError(
                f"no such setting: {', '.join(unknown)}; there are {', '.join(known)}.")
        return dataclasses.replace(self, **changes)

    def for_node(self, name: str, path: str) -> NodeConfig:
        """Settle the threshold and norm of one node (its own settings, else the model's)."""
        own = self.of_node(name, path)
        return NodeConfig(self.threshold if own.threshold is None else own.threshold,
                          own.norm or self.norm)

    def of_node(self, name: str, path: str) -> NodeConfig:
        """Return what `nodes` says of one node; ``None`` where that is nothing."""
        threshold, norm = None, None
        for pattern, own in self.nodes.items():
            if fnmatchcase(name, pattern) or fnmatchcase(path, pattern):
                threshold = threshold if own.threshold is None else own.threshold
                norm = own.norm or norm
        return NodeConfig(threshold, norm)

    def check_nodes(self, known: Collection[tuple[str, str]]) -> None:
        """Refuse settings for nodes that are not among these names and paths.

        Raises:
            ConfigError: naming the pattern and the names most like it.
        """
        for pattern in self.nodes:
            if not any(fnmatchcase(n, pattern) for pair in known for n in pair):
                names = sorted({n for pair in known for n in pair if n})
                near = get_close_matches(pattern, names) or names[:8]
                raise ConfigError(
                    f"nodes[{pattern!r}] matches no node; there are {', '.join(near)} ... An "
                    "activation that is fused goes by the name of the operator before it.")

    @property
    def cap(self) -> float:
        """What the block test may hold back at a single pixel, at most."""
        return 8 * self.input_threshold if self.input_cap is None else self.input_cap

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for a file's header."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Config:
        """Rebuild what `to_dict` gave.

        Raises:
            ConfigError: for settings that this version does not know.
        """
        return cls().replace(**data)


def _check_amount(name: str, value: float) -> None:
    if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ConfigError(f"{name}={value!r}: give a finite number that is 0 (exact) or larger.")


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ConfigError(f"{name}={value!r}: choose one of {', '.join(get_args(choices))}.")


def _node_config(pattern: str, value: Any) -> NodeConfig:
    if isinstance(value, (int, float)):
        value = NodeConfig(threshold=value)
    elif isinstance(value, Mapping):
        known = [f.name for f in dataclasses.fields(NodeConfig)]
        if unknown := sorted(set(value) - set(known)):
            raise ConfigError(f"nodes[{pattern!r}]: no such setting: {', '.join(unknown)}; there "
                              f"are {', '.join(known)}.")
        value = NodeConfig(**value)
    if not isinstance(value, NodeConfig):
        raise ConfigError(f"nodes[{pattern!r}]={value!r}: give a threshold or a NodeConfig.")
    if value.threshold is not None:
        _check_amount(f"nodes[{pattern!r}].threshold", value.threshold)
    if value.norm is not None:
        _check_choice(f"nodes[{pattern!r}].norm", value.norm, Norm)
    return value
