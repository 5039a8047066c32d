import torch
from torchvision.models import swin_transformer as swin

from tests.operators.table import Call, Cases, Group, Tried, Value, maps

LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
# By its module's name, as that is where tracing finds that it is a leaf.
on_maps = Call(lambda self, x: swin._patch_merging_pad(x.permute(LAST)).permute(FIRST))
as_it_is = Call(lambda self, x: swin._patch_merging_pad(x))
OPERATORS = {
    "patch_merging2d": Cases(
        [Value("a square", on_maps, [maps([[1, 2], [3, 4]], [[5, 6], [7, 8]])],
               maps([[1]], [[5]], [[3]], [[7]], [[2]], [[6]], [[4]], [[8]])),
         Value("what is missing is zeros", on_maps, [maps([[1, 2, 3], [4, 5, 6], [7, 8, 9]])],
               maps([[1, 3], [7, 9]], [[4, 6], [0, 0]], [[2, 0], [8, 0]], [[5, 0], [0, 0]]))],
        [Group([(2, 3, 5, 6)], {
            "permuted": on_maps,
            "moved": Call(lambda self, x: swin._patch_merging_pad(x.movedim(1, -1)).movedim(-1, 1)),
        })],
        [Tried(on_maps, [(1, 2, 4, 6)]), Tried(on_maps, [(1, 1, 3, 5)])]),
    "patch_merging": Cases(
        [Value("of the last three dimensions", as_it_is, [maps([[1, 2], [3, 4]])],
               torch.tensor([[[[1.0, 2, 0, 0, 3, 4, 0, 0]]]]))],
        [Group([(2, 5, 6, 3)], {"the function": as_it_is})]),
}
