"""``.delta`` files: a converted model as one safetensors file, which runs nothing when read.

The tensors are the model's own, under the names of its state dict, in their dtypes and the
layout of the original; tied ones once. The rest is JSON in the header's ``__metadata__``,
under the one key ``deltaconvert`` (safetensors writes several in a random order, and the
same model shall give the same file):

- ``version`` of the format, looked at before anything else;
- ``sha256`` of the description and the tensors;
- ``model``, the description: the normalised graph (see `graph_json`), the structure of the
  outputs, the configuration, and which tensor is what.

The passes from `fold_batch_norm` on run again when the model is used.
"""

from deltaconvert.files.container import VERSION, Header, read_header
from deltaconvert.files.model import load, load_structure, save

__all__ = ["VERSION", "Header", "load", "load_structure", "read_header", "save"]
