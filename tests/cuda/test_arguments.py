"""The structures in Python are those in the kernels' sources, field by field."""

from __future__ import annotations

import ctypes
import re

import pytest

from deltaconvert.cuda import arguments
from deltaconvert.cuda.loader import FOLDER

STRUCTURES = {name: kind for name, kind in vars(arguments).items()
              if isinstance(kind, type) and issubclass(kind, ctypes.Structure)}
KINDS = {"int": ctypes.c_int, "float": ctypes.c_float, "long long": ctypes.c_longlong}
SOURCES = "\n".join(path.read_text() for path in sorted(FOLDER.glob("*.cu*")))


def declared(name: str) -> list[tuple[str, object]]:
    """The fields of a structure as the sources declare them."""
    body = re.search(rf"struct {name} \{{(.*?)\n\}};", SOURCES, re.DOTALL)
    assert body, f"no struct {name} in the sources"
    text = re.sub(r"//.*", "", body[1])
    fields: list[tuple[str, object]] = []
    for line in filter(None, (part.strip() for part in text.split(";"))):
        kind, names = re.match(r"((?:const )?(?:long long|\w+)\s*\*?)\s*(.*)", line, re.S).groups()
        for field in re.split(r",\s*", names):
            kind = kind.replace("const ", "").strip()
            count = re.search(r"\[(\w+)\]", field)
            plain = field.split("[")[0].strip().lstrip("*")
            of = ctypes.c_void_p if "*" in kind or "*" in field else KINDS.get(
                kind) or STRUCTURES[kind]
            fields.append((plain, of * arguments.MOST_SOURCES if count else of))
    return fields


@pytest.mark.parametrize("name", STRUCTURES)
def test_the_fields_are_the_same(name):
    assert declared(name) == [(field, kind) for field, kind in STRUCTURES[name]._fields_]
