"""What ``convert`` starts from: a checkpoint and its model's name, or an exported program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from deltaconvert.checkpoints import apply_state_dict, read_checkpoint
from deltaconvert.errors import InputError
from deltaconvert.exported.reading import SUFFIX, read_program
from deltaconvert.model_specs import build_model, parse_model_args


@dataclass(frozen=True)
class Source:
    """A dense model with its weights, and where they were found.

    Args:
        model: in eval mode.
        entry: of a training checkpoint, empty where the file is a state dict itself.
        prefix: that was taken off the names of the weights.
        is_program: the file is an exported program, which needs no model's name.
    """

    model: nn.Module
    entry: str = ""
    prefix: str = ""
    is_program: bool = False

    @property
    def weights(self) -> str:
        """Say where the weights were found."""
        if self.is_program:
            return "a program of torch.export"
        entry = f"its entry {self.entry}" if self.entry else "the file itself is a state dict"
        return entry + (f", prefix {self.prefix!r} taken off" if self.prefix else "")


def read_source(checkpoint: Path, spec: str | None, arguments: Sequence[str] | None, *,
                trust_pickle: bool = False, ignore_surplus: bool = False) -> Source:
    """Build the model that ``spec`` names with a checkpoint's weights, or read a program.

    Raises:
        InputError: a name and a program, or neither; and see `build_model`.
        CheckpointError: see `read_checkpoint`, `apply_state_dict` and `read_program`.
        UnsupportedError: see `read_program`.
    """
    if checkpoint.suffix.lower() == SUFFIX:
        if spec is not None or arguments:
            raise InputError(f"{checkpoint} is a program, which holds the model as well: leave "
                             "--model and --model-arg out.")
        return Source(read_program(checkpoint), is_program=True)
    if spec is None:
        raise InputError(f"{checkpoint} holds weights alone: name their model with --model "
                         f"torchvision:NAME, timm:NAME or package.module:factory. A program of "
                         f"torch.export ({SUFFIX}) needs none.")
    model = build_model(spec, parse_model_args(arguments or ()))
    found = read_checkpoint(checkpoint, trust_pickle=trust_pickle)
    return Source(model, found.entry, apply_state_dict(
        model, found.state, ignore_surplus=ignore_surplus))
