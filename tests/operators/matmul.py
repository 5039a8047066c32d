import torch
import torch.nn.functional as F

from tests.operators.table import Call, Cases, Group, Value, maps


def two(function) -> Call:
    return Call(lambda self, x, y: function(x, y))


square = maps([[1, 2], [3, 4]])
OPERATORS = {
    "matmul": Cases(
        [Value("of rows and columns", two(lambda x, y: x @ y), [square, maps([[0, 1], [1, 0]])],
               maps([[2, 1], [4, 3]]))],
        [Group([(2, 3, 4, 5), (2, 3, 5, 4)], {
            "operator": two(lambda x, y: x @ y), "torch": two(torch.matmul),
            "method": two(lambda x, y: x.matmul(y))}),
         Group([(2, 3, 4, 5), (2, 3, 5, 4)], {
             "bmm": two(lambda x, y: torch.bmm(x.flatten(0, 1), y.flatten(0, 1))),
             "method": two(lambda x, y: x.flatten(0, 1).bmm(y.flatten(0, 1)))},
             others=["flatten", "flatten"])]),
    "attention": Cases(
        [Value("equal keys are averaged",
               two(lambda x, y: F.scaled_dot_product_attention(x, x * 0, y)),
               [square, maps([[2, 0], [4, 8]])], maps([[3, 4], [3, 4]]))],
        [Group([(2, 3, 4, 5), (2, 3, 4, 5)], {
            "F": two(lambda x, y: F.scaled_dot_product_attention(x, y, y)),
            "by name": two(lambda x, y: F.scaled_dot_product_attention(
                query=x, key=y, value=y, dropout_p=0.0, is_causal=False))})]),
}
