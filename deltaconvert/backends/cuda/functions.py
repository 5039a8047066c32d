"""Functions of the numbers at one place, as the kernels compile them.

Each is an expression of C++ in float32, without spaces, of ``x``, ``y``, ``z`` and ``s``: the
arguments in their order, settings behind maps. NaN stays NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

_SOFTPLUS = "log1pf(expf(x))"
_HARD = "clamp(x+3.f,0.f,6.f)/6.f"
# May also be fused behind other operations: of x, with at most two settings.
ACTIVATIONS = {
    "leaky_relu": "x>0.f?x:x*y",
    "hardswish": f"x*{_HARD}",
    "hardsigmoid": _HARD,
    "sigmoid": "1.f/(1.f+expf(-x))",
    "silu": "x/(1.f+expf(-x))",
    "tanh": "tanhf(x)",
    "gelu": "0.5f*x*(1.f+erff(x*0.70710678f))",
    "gelu tanh": "0.5f*x*(1.f+tanhf(0.79788456f*(x+0.044715f*x*x*x)))",
    "elu": "x>0.f?x:y*expm1f(x)",
    "celu": "x>0.f?x:y*expm1f(x/y)",
    "selu": "1.05070098f*(x>0.f?x:1.67326324f*expm1f(x))",
    "softplus": "x*y>z?x:log1pf(expf(x*y))/y",
    "mish": f"x*tanhf(x>20.f?x:{_SOFTPLUS})",
    "logsigmoid": "(x<0.f?x:0.f)-log1pf(expf(-fabsf(x)))",
    "softsign": "x/(1.f+fabsf(x))",
    "tanhshrink": "x-tanhf(x)",
    "softshrink": "x>y?x-y:(x<-y?x+y:0.f*x)",
}
FUNCTIONS = {
    "hardshrink": "x>=-y&&x<=y?0.f:x",
    "threshold": "x<=y?z:x",
    "abs": "fabsf(x)", "neg": "-x", "positive": "x", "square": "x*x", "reciprocal": "1.f/x",
    "rsqrt": "1.f/sqrtf(x)", "round": "rintf(x)",
    **{name: f"{name}f(x)" for name in (
        "sqrt", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan",
        "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "erf", "erfc", "floor",
        "ceil", "trunc")},
    "div": "x/y", "pow": "powf(x,y)", "atan2": "atan2f(x,y)", "hypot": "hypotf(x,y)",
    "maximum": "x!=x||x>y?x:y", "minimum": "x!=x||x<y?x:y",
    "lerp": "x+z*(y-x)", "addcmul": "x+s*y*z", "addcdiv": "x+s*y/z",
    "prelu": "x>0.f?x:x*y",
}


class Applied(NamedTuple):
    """An activation as the kernels take it.

    Args:
        text: the expression; empty for none, and where it only clamps.
        settings: its y and z.
        least, most: of what one that only clamps lets pass.
    """

    text: str = ""
    settings: tuple[float, float] = (0.0, 0.0)
    least: float = -math.inf
    most: float = math.inf

    @property
    def defines(self) -> dict[str, str]:
        """Preprocessor symbols for it."""
        return {"ACTIVATE": self.text} if self.text else {}


NOTHING = Applied()


def applied(activation: Sequence[Any] | None) -> Applied | None:
    """Translate ``(name, *settings)``; nothing where the kernels lack it."""
    if activation is None:
        return NOTHING
    name, *settings = activation
    if name == "relu":
        return Applied(least=0.0)
    if name == "relu6":
        return Applied(least=0.0, most=6.0)
    if name == "clamp":
        least, most = settings
        most = math.inf if most is None else most
        return Applied(least=-math.inf if least is None else min(least, most), most=most)
    if name == "gelu":
        name = "gelu tanh" if settings == ["tanh"] else name
        settings = []
    text = ACTIVATIONS.get(str(name))
    if text is None or not all(isinstance(s, (int, float)) for s in settings):
        return None
    first, second = (*map(float, settings), 0.0, 0.0)[:2]
    return Applied(text, (first, second))


def function_of(name: str, operands: Sequence[Any]) -> str | None:
    """Return the expression of an operator; nothing where there is none.

    Args:
        name: of the operator.
        operands: its arguments and settings; a square and a root are no powers.
    """
    if name == "pow" and isinstance(operands[1], (int, float)) and operands[1] in (2, 0.5):
        return {2: "x*x", 0.5: "sqrtf(x)"}[operands[1]]
    return FUNCTIONS.get(name)
