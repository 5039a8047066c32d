"""Weights into a model: every tensor finds its place, or all that do not are told."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

from torch import Tensor, nn

from deltaconvert.errors import MismatchError
from deltaconvert.passes.trace import private_copy
from deltaconvert.words import MOST_LISTED, capped

logger = logging.getLogger(__name__)

WRAPPER_PREFIXES = ("module.", "model.", "_orig_mod.")


def apply_state_dict(model: nn.Module, state: Mapping[str, Tensor], *,
                     ignore_surplus: bool = False) -> str:
    """Put a state dict into a model; every tensor must find its place.

    Prefixes that training wrappers add to every name (`module.`, `model.`, `_orig_mod.`)
    are taken off where the model's own names do not have them; a model that is one attribute
    of a training module (`net.`) is taken out of it. Two counters that only
    training needs are left out of account: a missing `num_batches_tracked`, and the
    `n_averaged` that an averaged model adds.

    Args:
        model: gets the weights.
        state: tensors by name.
        ignore_surplus: leave out what the model has no place for, which is logged; nothing may
            be missing all the same.

    Returns:
        The prefix that was taken off, empty where none was.

    Raises:
        MismatchError: tensors are missing, left over or of another shape; all of them
            are told at once, and the model is as it was.
    """
    expected = model.state_dict()
    given, prefix = strip_prefixes(state, expected)
    if not prefix:
        given, prefix = _within_attribute(given, expected)
    counters = {k: v for k, v in expected.items() if k.endswith("num_batches_tracked")}
    given = {**counters, **given}
    surplus = [name for name in given if name not in expected]
    if surplus and ignore_surplus and not _loads_into_copy(model, given):
        logger.warning("left out what the model has no place for: %s", capped(surplus))
        given = {name: tensor for name, tensor in given.items() if name in expected}
    problems = _mismatches(expected, given)
    if problems and not _loads_into_copy(model, given):
        raise MismatchError(
            "the weights do not fit the model:\n"
            + "\n".join(f"  {p}" for p in problems)
            + f"\n{_way_out(expected, given)}"
        )
    _refuse_quantized(model, given)
    model.load_state_dict(given)
    if prefix:
        logger.info("took the prefix %r off the names of the weights", prefix)
    return prefix


def _refuse_quantized(model: nn.Module, given: Mapping[str, Tensor]) -> None:
    """Refuse whole numbers as weights: PyTorch would take them for what they stand for.

    Raises:
        MismatchError: with all of them.
    """
    wrong = [f"{name} is {given[name].dtype}, the model's is {p.dtype}"
             for name, p in model.named_parameters(remove_duplicate=False)
             if name in given and p.is_floating_point() and not given[name].is_floating_point()]
    if wrong:
        raise MismatchError(f"weights are whole numbers, as quantized ones are: {capped(wrong)}. "
                            "Give those that they were made from")


def strip_prefixes(
    state: Mapping[str, Tensor], expected: Iterable[str]
) -> tuple[dict[str, Tensor], str]:
    """Take off wrapper prefixes that every name in `state` has and no expected name has.

    Returns:
        The renamed state dict and the prefix, which may be several in a row.
    """
    expected = list(expected)
    stripped, taken = dict(state), ""
    if "n_averaged" not in expected:  # torch.optim.swa_utils.AveragedModel counts with it
        stripped.pop("n_averaged", None)
    while prefix := _common_prefix(stripped, expected):
        stripped = {name.removeprefix(prefix): tensor for name, tensor in stripped.items()}
        taken += prefix
    return stripped, taken


def _within_attribute(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]
                      ) -> tuple[dict[str, Tensor], str]:
    """Take the model out of a training module that holds it as an attribute of any name.

    What the training module holds beside it (a loss with weights, a metric) is left out, and
    that is logged. Without one prefix under which all of the model lies, nothing changes.
    """
    needed = [name for name in expected if not name.endswith("num_batches_tracked")]
    if not needed or needed[0] in state:
        return dict(state), ""
    for name in state:
        prefix = name.removesuffix(needed[0])
        if prefix != name and prefix.endswith(".") and all(prefix + n in state for n in needed):
            others = [n for n in state if not n.startswith(prefix)]
            if others:
                logger.warning("left out what lies beside the model, %s: %s", prefix,
                               capped(others))
            return {n.removeprefix(prefix): t for n, t in state.items()
                    if n.startswith(prefix)}, prefix
    return dict(state), ""


def _common_prefix(names: Iterable[str], expected: Sequence[str]) -> str:
    names = list(names)
    for prefix in WRAPPER_PREFIXES:
        in_all = bool(names) and all(name.startswith(prefix) for name in names)
        if in_all and not any(name.startswith(prefix) for name in expected):
            return prefix
    return ""


def _mismatches(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    missing = [name for name in expected if name not in given]
    left_over = [name for name in given if name not in expected]
    # Comparing names is slow: only those that will be listed.
    left_over[:MOST_LISTED] = [name + _near(name, missing) for name in left_over[:MOST_LISTED]]
    shapes = [
        f"{name} is {list(given[name].shape)}, the model's is {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in given and given[name].shape != tensor.shape
    ]
    kinds = (("missing", missing), ("not in the model", left_over), ("of another shape", shapes))
    return [f"{kind}: {len(found)}: {capped(found)}" for kind, found in kinds if found]


def _way_out(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """Say what to do about weights that do not fit."""
    if not any(name in given for name in expected if not name.endswith("num_batches_tracked")):
        return ("These are another model's weights: build that one (--model), or give this model's "
                "own")
    built = "uild the model with the arguments it was trained with (model_args, --model-arg)"
    if all(name in given and given[name].shape == t.shape for name, t in expected.items()):
        return f"Leave them out (--ignore-surplus, ignore_surplus=True), or b{built}"
    return f"B{built}, or choose its own weights"


def _near(name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f" (near {close[0]})" if close else ""


def _loads_into_copy(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether PyTorch takes it all the same: modules may rename old weights as they load."""
    try:
        private_copy(model).load_state_dict(state)
    except Exception:  # whatever a module's own hook, or its copying, raises
        return False
    return True
