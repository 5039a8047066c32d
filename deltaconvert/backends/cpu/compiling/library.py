"""How an entry becomes machine code: once, with all the loops that it calls.

Numba optimises every function and makes machine code of it, links that into each of its callers,
and does the same with these, so that what lies deep is compiled once a caller and level: two
thirds of a first start. Here a loop that an entry calls is a *part*: it is translated, kept, and
optimised with the entry that it is linked into.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import llvmlite.binding
from numba.core import ccallback, codegen
from numba.core.compiler_lock import global_compiler_lock

_Function: Any = ccallback.CFunc
_Library: Any = codegen.JITCodeLibrary


class EntryFunction(_Function):
    """A C function whose parts are compiled with it."""

    def _compile_uncached(self) -> Any:
        context = self._targetdescr.target_context
        context.refresh()  # Numba's own library is no part; who looks into a cache has made it
        with global_compiler_lock, _parts(context.codegen()):
            compiled = super()._compile_uncached()
        compiled.library.is_entry = True
        return compiled


def _rename(module: Any) -> None:
    """Name the parts in a module after the entry, with its file, that they were linked into.

    A counter of this process names them, so that two entries that came into the cache by two
    processes may give one name to different parts of one factory, a maximum and a sum. Loaded
    together, one entry would call the other's: code that may be linked twice is found by its name.
    """
    entry = next(f.name for f in module.functions
                 if not f.is_declaration and f.name.startswith("cfunc."))
    for function in module.functions:
        if (not function.is_declaration
                and function.linkage == llvmlite.binding.Linkage.linkonce_odr):
            function.name = f"{function.name}.{entry}"


@contextmanager
def _parts(maker: Any) -> Iterator[None]:
    """Make all libraries `Part`; only who holds Numba's lock makes any."""
    maker._library_class = Part
    try:
        yield
    finally:
        del maker._library_class


class Part(_Library):
    """A function's code, which becomes machine code with the entry that it is linked into.

    Attributes:
        is_entry: whether it is that entry.
        environments: of Numba's, by name, which code that raises looks up: set when there is an
            entry with that code.
    """

    _linking_libraries: list[Any]
    _shared_module: Any

    def __init__(self, maker: Any, name: str) -> None:
        """Begin an empty library."""
        super().__init__(maker, name)
        self.is_entry = False
        self.environments: dict[str, Any] = {}

    @property
    def codegen(self) -> Any:
        """What made it; for a part, itself, who takes environments."""
        return self._codegen if self.is_entry else self

    def set_env(self, name: str, environment: Any) -> None:
        """Keep an environment for later."""
        self.environments[name] = environment

    def get_pointer_to_function(self, name: str) -> int:
        """Return where a function is; 0 for a part: nowhere."""
        address: int = super().get_pointer_to_function(name) if self.is_entry else 0
        return address

    def add_linking_library(self, library: Any) -> None:
        """Note what is called."""
        self._linking_libraries.append(library)

    def finalize(self) -> None:
        """Optimise an entry and all of its parts, and make machine code."""
        if not self.is_entry:
            return
        parts = self._link_parts(self._final_module)
        _rename(self._final_module)
        super().finalize()
        for part in parts:
            for name, environment in part.environments.items():
                self._codegen.set_env(name, environment)

    def _link_parts(self, module: Any) -> list[Part]:
        """Link all parts that are called from here into a module, and leave the rest to Numba."""
        parts: dict[Part, None] = {}
        others: dict[Any, None] = {}
        ahead = [self]
        while ahead:
            for library in ahead.pop()._linking_libraries:
                if not isinstance(library, Part):
                    others[library] = None
                elif library not in parts:
                    parts[library] = None
                    ahead.append(library)
                    module.link_in(library._shared(), preserve=True)
                    if hasattr(self, "_reload_init"):  # older Numbas have none
                        self._reload_init.update(library._reload_init)
        self._linking_libraries = list(others)
        return list(parts)

    def _shared(self) -> Any:
        """Return the code of this function alone, as it may be linked into several modules."""
        if self._shared_module is None:
            self._shared_module = self._final_module.clone()
            for function in self._shared_module.functions:
                if (not function.is_declaration
                        and function.linkage == llvmlite.binding.Linkage.external):
                    function.linkage = "linkonce_odr"
        return self._shared_module

    def _get_module_for_linking(self) -> Any:
        """Return it with its parts, for functions that are no parts."""
        module = self._shared().clone()
        for library in self._linking_libraries:
            module.link_in(library._get_module_for_linking(), preserve=True)
        return module
