"""The file that ``torch.export.save`` writes: a description, and tensors."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from deltaconvert.errors import CheckpointError, PickleError, VersionError

SCHEMA = 8  # the major version of the format's description

DTYPES = {1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64,
          6: torch.float16, 7: torch.float32, 8: torch.float64, 12: torch.bool,
          13: torch.bfloat16}


class Archive:
    """The members of a file by their names without the folder that all lie in."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        """Look what is there; ``name`` is for messages."""
        self.archive, self.name = archive, name
        names = archive.namelist()
        roots = {n.partition("/")[0] for n in names}
        prefix = f"{roots.pop()}/" if len(roots) == 1 else ""
        self.members = {n.removeprefix(prefix): n for n in names}
        if self._text("byteorder", "little") != "little":
            raise CheckpointError(f"{name} was written on a big-endian machine: export it again "
                                  "on a little-endian one.")

    def _text(self, member: str, missing: str) -> str:
        return self.read(member).decode().strip() if member in self.members else missing

    def read(self, member: str) -> bytes:
        """Return a member's bytes."""
        return self.archive.read(self.members[member])

    def description(self) -> dict[str, Any]:
        """Return the JSON of the program.

        Raises:
            CheckpointError: where there is none, or of another version.
        """
        for member in ("models/model.json", "serialized_exported_program.json"):
            if member in self.members:
                found: dict[str, Any] = json.loads(self.read(member))
                version = found["schema_version"]["major"]
                if version != SCHEMA:
                    raise VersionError(
                        f"{self.name} has the schema version {version}, this deltaconvert reads "
                        f"{SCHEMA}: export it again with another PyTorch, or update deltaconvert.")
                return found
        kind = "a compiled package (AOTInductor), which is machine code" if any(
            "aotinductor" in m for m in self.members) else "no program of torch.export.save"
        raise CheckpointError(f"{self.name} holds {kind}. Write the program with "
                              "torch.export.save(torch.export.export(model, inputs), 'model.pt2').")

    def tensors(self, folder: str) -> dict[str, Tensor]:
        """Return the tensors of ``weights`` or ``constants``, tied ones as one."""
        older = {"weights": "serialized_state_dict.pt", "constants": "serialized_constants.pt"}
        for member in (f"data/{folder}/model.pt", older[folder]):
            if member in self.members:
                return dict(self._unpickled(member))
        config = json.loads(self.read(f"data/{folder}/model_{folder}_config.json"))["config"]
        made: dict[str, Tensor] = {}
        found = {}
        for name, told in config.items():
            key = json.dumps([told["path_name"], told["tensor_meta"]])
            if key not in made:
                made[key] = self._tensor(f"data/{folder}/{told['path_name']}", told)
            found[name] = made[key]
        return found

    def _tensor(self, member: str, told: Mapping[str, Any]) -> Tensor:
        if told["use_pickle"]:
            tensor = self._unpickled(member)
            if not isinstance(tensor, Tensor):
                raise PickleError(f"{self.name}: {member} is no tensor but an object, which was "
                                  "not opened: that would run code of the file.")
            return tensor.detach()
        meta, data = told["tensor_meta"], bytearray(self.read(member))
        sizes, strides = ([int(s["as_int"]) for s in meta[key]] for key in ("sizes", "strides"))
        dtype = DTYPES[meta["dtype"]]
        flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return torch.as_strided(flat, sizes, strides, int(meta["storage_offset"]["as_int"]))

    def _unpickled(self, member: str) -> Any:
        try:
            return torch.load(io.BytesIO(self.read(member)), map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file makes PyTorch raise nearly any type
            raise PickleError(
                f"{self.name}: {member} holds more than weights, or is damaged, and was not "
                "opened: unpickling objects runs code that comes with the file. Where you trust "
                "it, export the model again without custom objects.") from error
