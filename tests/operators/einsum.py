import torch

from tests.operators.table import Call, Group, Tried, Value, maps


def with_matrix(equation: str, matrix: torch.Tensor) -> Call:
    return Call(lambda self, x: torch.einsum(equation, x, self.matrix), matrix=matrix)


def two(equation: str) -> Call:
    return Call(lambda self, x, y: torch.einsum(equation, x, y))


matrix = torch.tensor([[1.0, 2], [0, -1], [3, 0]])
numbers = torch.arange(12.0).view(3, 4)
VALUES = [
    Value("a 1x1 convolution", with_matrix("nchw,oc->nohw", matrix),
          [maps([[1, 0]], [[2, 1]])], maps([[5, 2]], [[-2, -1]], [[3, 0]])),
    Value("of two maps", two("nchw,nchw->nchw"), [maps([[1, 2]]), maps([[3, -4]])],
          maps([[3, -8]])),
    Value("over places", two("nchw,ndhw->ncd"), [maps([[1, 2]]), maps([[3, -4]])],
          torch.tensor([[[-5.0]]])),
    Value("over places, with an ellipsis", two("n...w,ndhw->n...d"),
          [maps([[1, 2]]), maps([[3, -4]])], torch.tensor([[[[-5.0]]]])),
    Value("turned", Call(lambda self, x: torch.einsum("nchw->nwhc", x)), [maps([[1, 2]], [[3, 4]])],
          torch.tensor([[[[1.0, 3]], [[2.0, 4]]]])),
]

SPELLINGS = [
    Group([(2, 4, 3, 5)], {
        "torch": with_matrix("nchw,c->nhw", numbers[0]),
        "with blanks": with_matrix("n c h w, c -> n h w", numbers[0]),
        "a list": Call(lambda self, x: torch.einsum("nchw,c->nhw", [x, self.m]), m=numbers[0])}),
    Group([(2, 3, 4, 5), (2, 3, 4, 5)], {
        "an ellipsis understood": two("...ab,...ab"), "in full": two("... ab, ... ab -> ...")}),
    Group([(2, 3, 4, 5), (2, 3, 4, 5)], {
        "the output understood": two("abcd,abcd"), "in full": two("abcd,abcd->")}),
]

FOOTPRINTS = [
    Tried(with_matrix("nchw,c->nchw", numbers[0]), [(1, 4, 3, 3)]),
    Tried(Call(lambda self, x: torch.einsum("c,...chw->...chw", self.m, x), m=numbers[0]),
          [(1, 4, 2, 3)]),
    Tried(two("nchw,ndhw->ndhw"), [(1, 2, 2, 3), (1, 3, 2, 3)]),
    Tried(Call(lambda self, x: torch.einsum("nchw,nchw->nchw", x, x)), [(1, 2, 2, 3)]),
]
