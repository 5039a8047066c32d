import math

import torch
import torch.nn.functional as F

from tests.operators.table import Call, Cases, Group, Tried, Value, maps


def one(function) -> Call:
    return Call(lambda self, x: function(x))


two = maps([[1, 2]], [[3, -6]])
shape = [(2, 3, 4, 5)]


def local(function, generic: bool = True) -> list[Tried]:
    return [Tried(one(function), [(1, 3, 3, 4)], generic)]


OPERATORS = {
    "sum": Cases(
        [Value("over channels", one(lambda x: x.sum(1, keepdim=True)), [two], maps([[4, -4]])),
         Value("over the map", one(lambda x: x.sum((2, 3), keepdim=True)), [two],
               maps([[3]], [[-3]])),
         Value("over parts", one(lambda x: x.reshape(x.shape[0], 2, 1, 1, 2).sum(1)), [two],
               maps([[4, -4]])),
         Value("over parts that stay", one(lambda x: x.reshape(x.shape[0], 2, 1, 1, 2).sum(
             -4, keepdim=True).flatten(1, 2)), [two], maps([[4, -4]]))],
        [Group(shape, {"torch": one(lambda x: torch.sum(x, 1, True)),
                       "method": one(lambda x: x.sum(dim=1, keepdim=True)),
                       "a list": one(lambda x: x.sum([1], keepdim=True)),
                       "axis": one(lambda x: x.sum(axis=1, keepdim=True))})],
        local(lambda x: x.sum(1, True))),
    "amax": Cases(
        [Value("over channels", one(lambda x: x.amax(1, keepdim=True)), [two], maps([[3, 2]])),
         Value("over the map", one(lambda x: x.amax((2, 3), keepdim=True)), [two],
               maps([[2]], [[3]]))],
        [Group(shape, {"torch": one(lambda x: torch.amax(x, 1, True)),
                       "method": one(lambda x: x.amax(dim=[1], keepdim=True)),
                       "torch.max": one(lambda x: torch.max(x, 1, keepdim=True)[0]),
                       "as of NumPy": one(lambda x: x.amax(axis=1, keepdims=True)),
                       "max as of NumPy": one(lambda x: x.max(axis=1, keepdims=True)[0]),
                       "its values": one(lambda x: torch.max(x, dim=1, keepdim=True).values),
                       "max": one(lambda x: x.max(1, True)[0])})],
        local(lambda x: x.amax(1, True))),
    "amin": Cases(
        [Value("over channels", one(lambda x: x.amin(1, keepdim=True)), [two], maps([[1, -6]]))],
        [Group(shape, {"torch": one(lambda x: torch.amin(x, 1, True)),
                       "method": one(lambda x: x.amin(dim=(1,), keepdim=True)),
                       "torch.min": one(lambda x: torch.min(x, 1, True).values),
                       "min": one(lambda x: x.min(1, True)[0])})],
        local(lambda x: x.amin(1, True))),
    "logsumexp": Cases(
        [Value("over channels", one(lambda x: x.logsumexp(1, True)),
               [maps([[0]], [[math.log(3)]])], maps([[math.log(4)]]), 1e-6)],
        [Group(shape, {"torch": one(lambda x: torch.logsumexp(x, 1, True)),
                       "method": one(lambda x: x.logsumexp(dim=(1,), keepdim=True))})],
        local(lambda x: x.logsumexp(1, True), generic=False)),
    "var": Cases(
        [Value("over channels", one(lambda x: x.var(1, keepdim=True)), [two], maps([[2, 32]])),
         Value("of all there are", one(lambda x: x.var(1, unbiased=False, keepdim=True)), [two],
               maps([[1, 16]]))],
        [Group(shape, {"torch": one(lambda x: torch.var(x, 1, False, True)),
                       "method": one(lambda x: x.var(1, unbiased=False, keepdim=True)),
                       "correction": one(lambda x: x.var(dim=1, correction=0, keepdim=True))})],
        local(lambda x: x.var(1, keepdim=True))),
    "std": Cases(
        [Value("of all there are", one(lambda x: x.std(1, False, True)), [two], maps([[1, 4]]))],
        [Group(shape, {"torch": one(lambda x: torch.std(x, 1, True, True)),
                       "method": one(lambda x: x.std(1, keepdim=True)),
                       "correction": one(lambda x: x.std([1], correction=1, keepdim=True))})],
        local(lambda x: x.std(1, keepdim=True))),
    "vector_norm": Cases(
        [Value("over channels", one(lambda x: x.norm(dim=1, keepdim=True)),
               [maps([[3, 0]], [[4, -2]])], maps([[5, 2]])),
         Value("of absolute numbers, over the map",
               one(lambda x: torch.norm(x, 1, (2, 3), keepdim=True)), [two], maps([[3]], [[9]]))],
        [Group(shape, {"torch": one(lambda x: torch.norm(x, 2, 1, True)),
                       "linalg": one(lambda x: torch.linalg.vector_norm(x, 2, 1, keepdim=True)),
                       "method": one(lambda x: x.norm(p=2, dim=1, keepdim=True))})],
        local(lambda x: x.norm(dim=1, keepdim=True))),
    "normalize": Cases(
        [Value("over channels", one(F.normalize), [maps([[3, 0]], [[4, -2]])],
               maps([[0.6, 0]], [[0.8, -1]]), 1e-6)],
        [Group(shape, {"F": one(F.normalize), "in order": one(lambda x: F.normalize(x, 2.0, 1)),
                       "by name": one(lambda x: F.normalize(input=x, dim=1, p=2.0))})],
        local(F.normalize)),
}
