"""Files of weights, and weights into a model."""

from deltaconvert.checkpoints.fitting import apply_state_dict, strip_prefixes
from deltaconvert.checkpoints.reading import (
    Checkpoint,
    index_in,
    load_state_dict,
    read_checkpoint,
)

__all__ = ["Checkpoint", "apply_state_dict", "index_in", "load_state_dict", "read_checkpoint",
           "strip_prefixes"]
