import operator as python
from math import e, log, pi

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.operators.table import Call, Cases, Group, Tried, Value, maps

L2, L3 = log(2), log(3)
TOLERANCE = 2e-5  # single precision, of numbers up to 180

# A module with settings that are not the defaults, what goes in and what comes out.
ACTIVATIONS = {
    "relu": (nn.ReLU(), [-1, 0, 3, -5], [0, 0, 3, 0]),
    "relu6": (nn.ReLU6(), [-1, 0, 5, 6, 7, 100], [0, 0, 5, 6, 6, 6]),
    "sigmoid": (nn.Sigmoid(), [0, L3, -L3], [0.5, 0.75, 0.25]),
    "silu": (nn.SiLU(), [0, L3, -L3], [0, 0.75 * L3, -0.25 * L3]),
    "hardswish": (nn.Hardswish(), [-4, -3, -1, 0, 1, 3, 9], [0, 0, -2 / 6, 0, 4 / 6, 3, 9]),
    "tanh": (nn.Tanh(), [0, L2, -L2], [0, 0.6, -0.6]),
    "gelu": (nn.GELU("tanh"), [0, 1, -1], [0, 0.841192, -0.158808]),
    "hardsigmoid": (nn.Hardsigmoid(), [-4, -3, 0, 1.5, 3, 6], [0, 0, 0.5, 0.75, 1, 1]),
    "elu": (nn.ELU(2.0), [1, -L2], [1, -1]),
    "celu": (nn.CELU(2.0), [3, -2 * L2], [3, -1]),
    "selu": (nn.SELU(), [1, -L2], [1.050701, -1.050701 * 1.673263 / 2]),
    "softplus": (nn.Softplus(2.0, 5.0), [0, 3, 100], [L2 / 2, 3, 100]),
    "mish": (nn.Mish(), [0, L2], [0, 0.8 * L2]),
    "logsigmoid": (nn.LogSigmoid(), [0, L3], [-L2, log(3 / 4)]),
    "softsign": (nn.Softsign(), [1, -3], [0.5, -0.75]),
    "tanhshrink": (nn.Tanhshrink(), [0, L2], [0, L2 - 0.6]),
    "softshrink": (nn.Softshrink(0.75), [-2, 0.25, 1], [-1.25, 0, 0.25]),
    "hardshrink": (nn.Hardshrink(0.75), [-2, 0.25, 1], [-2, 0, 1]),
    "threshold": (nn.Threshold(1.0, -5.0), [0, 1, 2], [-5, -5, 2]),
}
SETTINGS = {"gelu": {"approximate": "tanh"}, "elu": {"alpha": 2.0}, "celu": {"alpha": 2.0},
            "softplus": {"beta": 2.0, "threshold": 5.0}, "softshrink": {"lambd": 0.75},
            "hardshrink": {"lambd": 0.75}, "threshold": {"threshold": 1.0, "value": -5.0}}

NUMBERS = {
    "abs": ([-2, 3], [2, 3]), "neg": ([-2, 3], [2, -3]), "positive": ([-2, 3], [-2, 3]),
    "acos": ([1, -1], [0, pi]), "acosh": ([1, 1.25], [0, L2]), "asin": ([0, 1], [0, pi / 2]),
    "asinh": ([0, 0.75], [0, L2]), "atan": ([0, 1], [0, pi / 4]), "atanh": ([0, 0.6], [0, L2]),
    "ceil": ([1.25, -1.25], [2, -1]), "cos": ([0, pi], [1, -1]), "cosh": ([0, L2], [1, 1.25]),
    "deg2rad": ([180, -90], [pi, -pi / 2]), "digamma": ([1, 2], [-0.577216, 0.422784]),
    "erf": ([0, 1], [0, 0.842701]), "erfc": ([0, 1], [1, 0.157299]),
    "erfinv": ([0, 0.842701], [0, 1]), "exp": ([0, L2], [1, 2]), "exp2": ([0, 3], [1, 8]),
    "expm1": ([0, L2], [0, 1]), "floor": ([1.25, -1.25], [1, -2]),
    "frac": ([1.25, -1.25], [0.25, -0.25]), "lgamma": ([1, 3], [0, L2]), "log": ([1, e], [0, 1]),
    "log10": ([1, 100], [0, 2]), "log1p": ([0, 1], [0, L2]), "log2": ([1, 8], [0, 3]),
    "logit": ([0.5, 0.75], [0, L3]), "nan_to_num": ([1, -2], [1, -2]),
    "rad2deg": ([pi, -pi / 2], [180, -90]), "reciprocal": ([2, -4], [0.5, -0.25]),
    "round": ([1.4, -1.6, 2.5], [1, -2, 2]), "rsqrt": ([4, 0.25], [0.5, 2]),
    "sign": ([-3, 0, 2], [-1, 0, 1]), "sin": ([0, pi / 2], [0, 1]),
    "sinc": ([0, 0.5], [1, 2 / pi]), "sinh": ([0, L2], [0, 0.75]), "sqrt": ([0, 9], [0, 3]),
    "square": ([3, -2], [9, 4]), "tan": ([0, pi / 4], [0, 1]), "trunc": ([1.75, -1.75], [1, -1]),
}
CONDITIONS = {
    "isfinite": ([1, 0, -2], [1, 0, 1]), "isinf": ([1, 0, -2], [0, 1, 0]),
    "isnan": ([1, 0, -2], [0, 1, 0]), "logical_not": ([0, 2], [1, 0]),
    "signbit": ([-1, 1], [1, 0]), "bitwise_not": ([-1, 1], [1, 0]),
}

PAIRS = {
    "pow": ([2, 3, 4], [3, 2, 0.5], [8, 9, 2]), "floor_divide": ([7, -7], [2, 2], [3, -4]),
    "remainder": ([7, -7], [3, 3], [1, 2]), "fmod": ([7, -7], [3, 3], [1, -1]),
    "atan2": ([1, 0], [1, -1], [pi / 4, pi]), "copysign": ([2, 3], [-1, 1], [-2, 3]),
    "fmax": ([1, 3], [2, 2], [2, 3]), "fmin": ([1, 3], [2, 2], [1, 2]),
    "heaviside": ([-1, 0, 1], [5, 5, 5], [0, 5, 1]), "hypot": ([3, 5], [4, 12], [5, 13]),
    "logaddexp": ([0, L2], [0, L2], [L2, log(4)]), "logaddexp2": ([1, 2], [1, 2], [2, 3]),
    "xlogy": ([0, 2], [0, e], [0, 2]),
}
# No frame holds infinity or NaN: what makes them of a zero.
BEFORE = {"isfinite": lambda x: 1 / x, "isinf": lambda x: 1 / x, "isnan": lambda x: x / x}
BOTH_CONDITIONS = {
    "eq": [1, 0, 0], "ne": [0, 1, 1], "lt": [0, 1, 0], "le": [1, 1, 0], "gt": [0, 0, 1],
    "ge": [1, 0, 1],
    "logical_and": [1, 0, 1], "logical_or": [1, 1, 1], "logical_xor": [0, 1, 0],
    "bitwise_and": [0, 0, 1], "bitwise_or": [0, 1, 1], "bitwise_xor": [0, 1, 0],
}
OPERATORS_OF_PYTHON = {
    "pow": python.pow, "floor_divide": python.floordiv, "remainder": python.mod, "eq": python.eq,
    "ne": python.ne, "lt": python.lt, "le": python.le, "gt": python.gt, "ge": python.ge,
    "bitwise_and": python.and_, "bitwise_or": python.or_, "bitwise_xor": python.xor,
}
LEFT, RIGHT = [2, 0, 3], [2, 1, 2]


def numbers(condition: Tensor, x: Tensor) -> Tensor:
    """A condition as ones and zeros of the same kind as ``x``."""
    return torch.where(condition, torch.ones_like(x), torch.zeros_like(x))


def line(values: list) -> Tensor:
    return maps([[float(v) for v in values]])


def one(function) -> Call:
    return Call(lambda self, x: function(x))


def two(function) -> Call:
    return Call(lambda self, x, y: function(x, y))


def activation(name: str) -> Cases:
    module, given, expected = ACTIVATIONS[name]
    settings = SETTINGS.get(name, {})
    function = getattr(F, name)
    models = {"module": module, "by name": one(lambda x: function(x, **settings))}
    if name != "gelu":
        models["in order"] = one(lambda x: function(x, *settings.values()))
    if hasattr(module, "inplace"):
        models["in place"] = type(module)(**settings, inplace=True)
    if hasattr(F, f"{name}_"):
        models["F, in place"] = one(lambda x: getattr(F, f"{name}_")(x, **settings))
    if hasattr(torch, name) and name != "threshold":
        models["torch"] = one(lambda x: getattr(torch, name)(x, **settings))
    if hasattr(torch, f"{name}_") and name != "threshold":
        models["torch, in place"] = one(lambda x: getattr(torch, f"{name}_")(x, **settings))
    if hasattr(Tensor, name):
        models["method"] = one(lambda x: getattr(x, name)(**settings))
    if hasattr(Tensor, f"{name}_"):
        models["method, in place"] = one(lambda x: getattr(x, f"{name}_")(**settings))
    if name == "sigmoid":
        models["expit"] = one(torch.special.expit)
    if "in place" in models:
        models["in place, in order"] = one(lambda x: function(x, *settings.values(), True))
    cases = Cases([Value("by hand", module, [line(given)], line(expected), TOLERANCE)],
                  [Group([(2, 3, 4, 5)], models)], [Tried(module, [(1, 2, 3, 4)])])
    if settings:
        plain = {"module": type(module)(*() if name != "threshold" else (1.0, 2.0)),
                 "F": one(lambda x: function(x, *() if name != "threshold" else (1.0, 2.0)))}
        cases.SPELLINGS.append(Group([(2, 3, 4, 5)], plain))
    return cases


def spelled(name: str) -> dict[str, nn.Module]:
    """Every way to write a function of one number."""
    function = getattr(torch, name)
    models = {"torch": one(lambda x: function(x)), "method": one(lambda x: getattr(x, name)())}
    if hasattr(Tensor, f"{name}_"):
        models["in place"] = one(lambda x: getattr(x, f"{name}_")())
    if hasattr(torch, f"{name}_"):
        models["torch, in place"] = one(lambda x: getattr(torch, f"{name}_")(x))
    if name != "positive" and name not in CONDITIONS:
        models["out="] = one(lambda x: function(x, out=torch.empty_like(x)))
    if hasattr(torch.special, name):
        models["special"] = one(lambda x: getattr(torch.special, name)(x))
    return models


def of_one(name: str) -> Cases:
    given, expected = NUMBERS[name]
    models = spelled(name)
    models |= {"abs": {"python": one(abs), "absolute": one(torch.absolute)},
               "neg": {"python": one(python.neg), "negative": one(torch.negative)},
               "positive": {"python": one(python.pos)}, "acos": {"arccos": one(torch.arccos)},
               "asin": {"arcsin": one(torch.arcsin)}, "atan": {"arctan": one(torch.arctan)},
               "trunc": {"fix": one(torch.fix)}}.get(name, {})
    return Cases([Value("by hand", models["torch"], [line(given)], line(expected), TOLERANCE)],
                 [Group([(2, 3, 4, 5)], models)])


def condition(name: str) -> Cases:
    given, expected = CONDITIONS[name]
    function = getattr(torch, name)
    if name == "bitwise_not":
        value = one(lambda x: numbers(~(x > 0), x))
        group = Group([(2, 3, 4, 5)], {
            "python": one(lambda x: ~(x > 0)), "torch": one(lambda x: torch.bitwise_not(x > 0)),
            "method": one(lambda x: (x > 0).bitwise_not())}, others=["gt"])
    else:
        before = BEFORE.get(name, lambda x: x)
        value = one(lambda x: numbers(function(before(x)), x))
        models = spelled(name)
        models.pop("in place", None)  # a bool does not fit into a float
        group = Group([(2, 3, 4, 5)], models)
    return Cases([Value("by hand", value, [line(given)], line(expected))], [group])


def methods_of_two(name: str) -> dict[str, nn.Module]:
    function = getattr(torch, name)
    models = {"torch": two(function), "method": two(lambda x, y: getattr(x, name)(y))}
    if name in OPERATORS_OF_PYTHON:
        models["python"] = two(OPERATORS_OF_PYTHON[name])
    return models


def of_two(name: str) -> Cases:
    left, right, expected = PAIRS[name]
    models = methods_of_two(name)
    if hasattr(Tensor, f"{name}_"):
        models["in place"] = two(lambda x, y: getattr(x, f"{name}_")(y))
    return Cases(
        [Value("by hand", models["torch"], [line(left), line(right)], line(expected), TOLERANCE)],
        [Group([(2, 3, 4, 5), (2, 3, 4, 5)], models)],
        [Tried(two(lambda x, y: getattr(torch, name)(x, y)), [(1, 2, 3, 4), (1, 2, 1, 1)], False)]
        if name not in ("pow", "xlogy") else [])  # of negative numbers these are NaN


def both(name: str) -> Cases:
    inputs, shapes = [line(LEFT), line(RIGHT)], [(2, 3, 4, 5), (2, 3, 4, 5)]
    models = methods_of_two(name)
    if not name.startswith("bitwise"):
        value = two(lambda x, y: numbers(getattr(torch, name)(x, y), x))
        return Cases([Value("by hand", value, inputs, line(BOTH_CONDITIONS[name]))],
                     [Group(shapes, models)])
    # Of conditions: 2 > 2, 0 > 2, 3 > 2 and 1 > 1, 2 > 1 ... by the columns of LEFT and RIGHT.
    function = OPERATORS_OF_PYTHON[name]
    value = two(lambda x, y: numbers(function(x > 2, (x < 1) | (x > 2)), x))
    group = Group(shapes, {label: Call(lambda self, x, y: self.m(x > y, x > 0), m=model)
                           for label, model in models.items()}, others=["gt", "gt"])
    return Cases([Value("by hand", value, inputs, line(BOTH_CONDITIONS[name]))], [group])


OPERATORS = {
    **{name: activation(name) for name in ACTIVATIONS}, **{name: of_one(name) for name in NUMBERS},
    **{name: condition(name) for name in CONDITIONS}, **{name: of_two(name) for name in PAIRS},
    **{name: both(name) for name in BOTH_CONDITIONS},
}
