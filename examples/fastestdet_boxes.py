"""Boxes for ``deltaconvert run --postprocess``: what FastestDet sees in a frame.

From the folder that holds ``examples/``, with the weights that the authors published::

    deltaconvert convert fastestdet.pth --model examples.fastestdet:FastestDet \\
        --channel-order bgr -o fastestdet.delta
    deltaconvert run fastestdet.delta --source street.mp4 --size 352x640 --fit pad \\
        --postprocess examples.fastestdet_boxes:boxes --overlay

``boxes`` is all that a post-processing is: a function from what the network returns for one
frame to plain data, which becomes a JSON line. What it has under ``draw`` draws that data on
the overlay video.
"""

from torch import Tensor

from deltaconvert.running.overlay import draw_boxes
from examples.fastestdet import decode

# The first of COCO's 80 classes, which are what a street has.
NAMES = ("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
         "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat",
         "dog")


def boxes(output: Tensor) -> dict[str, list[dict[str, object]]]:
    """Turn the network's output ``[1, 85, H', W']`` into boxes over the frame's size."""
    (found,) = decode(output)
    return {"boxes": [{"box": [round(n, 4) for n in row[:4]], "score": round(row[4], 3),
                       "label": name_of(int(row[5]))} for row in found.tolist()]}


def name_of(index: int) -> str:
    """Return a class's name, or its number where it is none of a street's."""
    return NAMES[index] if index < len(NAMES) else f"class {index}"


boxes.draw = draw_boxes  # type: ignore[attr-defined]
