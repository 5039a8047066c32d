"""What imports what: nothing imports what is built on it, not even when it is called."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Each uses its own row and those above.
LAYERS = (
    "errors words processor outputs sharing",
    "atomic footprint",
    "operators",
    "config nodes state cuda",
    "backends",
    "passes graph_json model_graph program preprocessing likely_frames exported "
    "files.container files.tensors",
    "fallbacks summary stream module islands convert files",
    "checking work validate tune",
    "calibrate checkpoints clips model_specs running",
    "bench",
    "pages",
    "cli",
)
LEVELS = {name: level for level, row in enumerate(LAYERS) for name in row.split()}


def level(module: str) -> int:
    """Return the layer of a module by its name within the package, ``files.tensors.pack``."""
    parts = module.split(".")
    return LEVELS.get(".".join(parts[:2]), LEVELS.get(parts[0], -1))


def files() -> dict[str, Path]:
    """Map each module's name within the package to its file; not the package's own."""
    found = {}
    for folder, prefix in (("deltaconvert", ()), ("passes", ("passes",)), ("cuda", ("cuda",))):
        for path in (ROOT / folder).rglob("*.py"):
            parts = (*prefix, *path.relative_to(ROOT / folder).with_suffix("").parts)
            found[".".join(parts).removesuffix(".__init__")] = path
    return {name: path for name, path in found.items() if name not in ("__init__", "__main__")}


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield what a file imports of the package; what only a type checker reads does not count."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        names = getattr(node, "names", [])
        if isinstance(node, ast.Import):  # of the package itself: all that is in it
            found = [name.name + (".cli" if name.name == "deltaconvert" else "") for name in names]
        elif isinstance(node, ast.ImportFrom):
            found = [f"{node.module}.{name.name}" for name in names]
        else:
            found = []
        yield from (name.partition(".")[2] for name in found if name.startswith("deltaconvert."))
        yield from imported(node)


def test_imports_go_down() -> None:
    found = files()
    assert [name for name in found if level(name) < 0] == []
    up = [f"{name} imports {other}" for name, path in found.items()
          for other in imported(ast.parse(path.read_text(encoding="utf-8")))
          if level(other) > level(name)]
    assert up == []


def test_packages_of_the_cpu_backend_use_those_above_them() -> None:
    """Above in the list of its docstring."""
    folder = ROOT / "deltaconvert" / "backends" / "cpu"
    about = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    order = re.findall(r"^- `(\w+)`: ", about or "", re.MULTILINE)
    assert sorted(order) == sorted(path.parent.name for path in folder.glob("*/__init__.py"))
    above = {name: set(order[:place + 1]) for place, name in enumerate(order)}
    wrong = []
    for path in folder.glob("*/*.py"):
        for other in imported(ast.parse(path.read_text(encoding="utf-8"))):
            within = other.removeprefix("backends.cpu.")
            if within != other and within.partition(".")[0] not in above[path.parent.name]:
                wrong.append(f"{path.parent.name}/{path.name} imports {other}")
    assert wrong == []
