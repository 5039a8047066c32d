"""Streams: lanes, resets, refused and interrupted frames, threads, the observer."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltaconvert
from deltaconvert.backends.cpu.runner import copy
from deltaconvert.errors import (
    FrameError,
    FrameTypeError,
    InputError,
    StreamBusyError,
    UnsupportedError,
)
from deltaconvert.nodes import copy_value
from tests.passes.graphs import Model, TwoInputs

BACKENDS = ["reference", "cpu"]


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@torch.fx.wrap
def counted(x, counter):
    counter.add_(1)
    return x * 2


class _Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("counter", torch.zeros(1))

    def forward(self, x):
        return counted(x, self.counter)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 4, 3, stride=2),
                         nn.Sigmoid()).eval()


def frame(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape or (2, 3, 8, 9), generator=torch.Generator().manual_seed(seed))


def snapshot(stream: deltaconvert.Stream) -> dict[str, tuple[Tensor, Tensor]]:
    """Value and threshold of each edge, and what counts as first frames."""
    state = stream._state
    return {name: (e.value.clone(), torch.tensor(e.threshold)) for name, e in state.edges.items()}


def assert_as_before(stream, before) -> None:
    after = snapshot(stream)
    assert after.keys() == before.keys()
    for name, (value, threshold) in before.items():
        assert torch.equal(after[name][0], value), f"{name} changed"
        assert torch.equal(after[name][1], threshold)


def counts_of(delta, *frames: Tensor) -> dict[str, list[int]]:
    """Mask pixels by node and lane in one frame."""
    counts = {}
    delta.observe(lambda node, edge: counts.__setitem__(node.about.name, list(edge.counts)))
    delta(*frames)
    delta.observe(None)
    return counts


# Lanes


def test_lanes_share_nothing(backend):
    model = net()
    delta = deltaconvert.convert(model, backend=backend, threshold=0.05)
    alone = [delta.new_stream() for _ in range(3)]
    x = frame(3, 3, 8, 9)
    for time in range(6):
        x = x.clone()
        x[time % 2, :, time:time + 2] += torch.randn(3, 2, 9) * 0.3
        together = delta(x)
        for lane, stream in enumerate(alone):
            torch.testing.assert_close(together[lane:lane + 1], stream(x[lane:lane + 1]))


def test_a_frame_equal_to_the_last_changes_nothing(backend):
    delta = deltaconvert.convert(net(), backend=backend)
    first = delta(frame())
    assert all(set(c) == {0} for c in counts_of(delta, frame()).values())
    assert torch.equal(delta(frame()), first)


def test_a_still_lane_is_not_touched(backend):
    delta = deltaconvert.convert(net(), backend=backend)
    x = frame()
    delta(x)
    x[1, :, 3, 3] += 1
    counts = counts_of(delta, x)
    assert all(c[0] == 0 for c in counts.values())
    assert counts["input_1"] == [0, 1]
    assert counts["_0"] == [0, 9]


@pytest.mark.parametrize("lanes", [None, [1], [0, 1], []])
def test_a_reset_lane_starts_with_full_masks_and_no_truncation(backend, lanes):
    model = net()
    delta = deltaconvert.convert(model, backend=backend, threshold=0.3, input_threshold=0.3)
    delta(frame())
    x = frame() + 0.2 * frame(seed=1)
    held = delta(x)
    reset = range(2) if lanes is None else lanes
    delta.reset(lanes)
    counts = counts_of(delta, x)
    out = snapshot(delta.stream)["_2"][0]
    with torch.no_grad():
        exact = model(x)
    for lane in range(2):
        if lane in reset:
            torch.testing.assert_close(out[lane], exact[lane])
            assert counts["input_1"][lane] == 72
        else:
            assert torch.equal(out[lane], held[lane])
            assert counts["input_1"][lane] == 0
    assert not torch.allclose(held, exact, atol=1e-3), "the thresholds held nothing back"


@pytest.mark.parametrize("lane", [2, -1])
def test_a_lane_that_is_not_there_cannot_be_reset(lane):
    delta = deltaconvert.convert(net(), backend="reference")
    delta.reset([lane])  # nothing to forget
    delta(frame())
    with pytest.raises(FrameError, match=f"lane {lane} is not there: the last batch had 2 lanes"):
        delta.reset([0, lane])
    assert counts_of(delta, frame())["input_1"] == [0, 0], "a refused reset resets nothing"
    with pytest.raises(InputError, match=r"lanes=1: give a list, \[1\]"):
        delta.reset(1)
    for wrong in ("a", ["a"], [0.0], torch.zeros(1), object()):
        with pytest.raises(InputError, match="give a list of whole numbers"):
            delta.reset(wrong)
    delta.reset(torch.tensor([0]))
    assert counts_of(delta, frame())["input_1"] == [frame()[0, 0].numel(), 0]


# New state


@pytest.mark.parametrize("shape", [(1, 3, 8, 9), (4, 3, 8, 9), (2, 3, 11, 7), (2, 3, 3, 3)])
def test_another_batch_size_or_resolution_starts_new_state(backend, shape):
    model = net()
    delta = deltaconvert.convert(model, backend=backend, threshold=0.5)
    delta(frame())
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(delta(frame(*shape)), model(frame(*shape)))
    with torch.no_grad():
        torch.testing.assert_close(delta(frame(seed=2)), model(frame(seed=2)))


def test_another_dtype_starts_new_state():
    delta = deltaconvert.convert(Model(lambda self, x: F.relu(x)), backend="reference")
    for dtype in (torch.float32, torch.float64, torch.float16):
        assert delta(frame().to(dtype)).dtype == dtype


# Refused frames


def bad_frames() -> dict[str, tuple]:
    nan, inf = frame(seed=3), frame(seed=3)
    nan[1, 0, 2, 2], inf[0, 2, 7, 8] = float("nan"), float("-inf")
    return {
        "NaN": (nan,), "infinity": (inf,), "rank": (frame(3, 8, 9)[0],),
        "channels": (frame(2, 4, 8, 9),), "too small": (frame(2, 3, 1, 1),),
        "dtype": (frame().double(),), "integers": (torch.ones(2, 3, 8, 9, dtype=torch.uint8),),
        "no lane": (frame()[:0],), "no pixel": (frame()[..., :0],), "none": (),
        "too many": (frame(), frame()), "no tensor": (frame().numpy(),), "a list": ([frame()],),
        "a number": (torch.tensor(1.0),), "NaN in another batch": (nan.repeat(2, 1, 1, 1),),
        "NaN at another size": (nan[..., :5],),
    }


@pytest.mark.parametrize("kind", bad_frames())
def test_a_refused_frame_leaves_the_stream_unchanged(backend, kind):
    delta = deltaconvert.convert(net(), backend=backend, threshold=0.1)
    delta(frame())
    last = delta(frame(seed=1))
    before, work, program = snapshot(delta.stream), dict(delta.statistics), delta.stream.program
    with pytest.raises(FrameError):
        delta(*bad_frames()[kind])
    assert delta.stream.program is program
    assert_as_before(delta.stream, before)
    assert delta.statistics == work
    assert all(set(c) == {0} for c in counts_of(delta, frame(seed=1)).values())
    assert torch.equal(delta(frame(seed=1)), last)


@pytest.mark.parametrize("kind", bad_frames())
def test_a_refused_first_frame_leaves_it_empty(backend, kind):
    model = net()
    delta = deltaconvert.convert(model, backend=backend, threshold=0.1)
    with pytest.raises(FrameError):
        delta(*bad_frames()[kind])
    with torch.no_grad():
        torch.testing.assert_close(delta(frame()), model(frame()))


def test_a_refusal_says_which_input_and_lane_and_how_many():
    delta = deltaconvert.convert(net(), backend="reference")
    with pytest.raises(FrameError, match=r"input 'input' holds 1 numbers .* \(lanes \[1\]\)"):
        delta(*bad_frames()["NaN"])
    with pytest.raises(FrameError, match="is a ndarray, not a tensor"):
        delta(*bad_frames()["no tensor"])
    with pytest.raises(FrameError, match=r"takes 1 input \(input\), 2 were given"):
        delta(*bad_frames()["too many"])


def test_the_second_of_two_inputs_is_examined_before_the_first_is_written(backend):
    delta = deltaconvert.convert(TwoInputs(lambda self, x, y: x - y), backend=backend)
    delta(frame(), frame())
    before = snapshot(delta.stream)
    with pytest.raises(FrameError):
        delta(frame(seed=1), bad_frames()["NaN"][0])
    assert_as_before(delta.stream, before)


def test_an_unknown_name_is_refused():
    class Masked(nn.Module):
        def forward(self, x, mask=None):
            return x if mask is None else x * mask
    delta = deltaconvert.convert(Masked())
    with pytest.raises(FrameError, match=r"masks: no input .* the inputs are x, mask"):
        delta(frame(), masks=frame())
    with pytest.raises(FrameError, match="x: no input of that name is left"):
        delta(frame(), x=frame())


# Interrupted frames


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("at", ["input_1", "_0", "_2"])
def test_a_frame_interrupted_half_way_starts_the_stream_anew(backend, at, error):
    model = net()
    delta = deltaconvert.convert(model, backend=backend, threshold=0.5)
    delta(frame())

    def interrupt(node, edge):
        if node.about.name == at:
            raise error
    delta.observe(interrupt)
    with pytest.raises(error):
        delta(frame(seed=1))
    delta.observe(None)
    with torch.no_grad():
        torch.testing.assert_close(delta(frame(seed=2)), model(frame(seed=2)))
    assert all(set(c) == {0} for c in counts_of(delta, frame(seed=2)).values())


def test_a_first_frame_interrupted_is_a_first_frame_again(backend):
    model = net()
    delta = deltaconvert.convert(model, backend=backend)

    def interrupt(node, edge):
        raise RuntimeError
    delta.observe(interrupt)
    with pytest.raises(RuntimeError):
        delta(frame())
    delta.observe(None)
    with torch.no_grad():
        torch.testing.assert_close(delta(frame()), model(frame()))


# Threads


def test_a_second_thread_is_refused_and_the_first_is_not_disturbed(backend):
    model = net()
    delta = deltaconvert.convert(model, backend=backend)
    inside, go_on = threading.Event(), threading.Event()

    def wait(node, edge):
        inside.set()
        assert go_on.wait(20)
    delta.observe(wait)
    results = []
    first = threading.Thread(target=lambda: results.append(delta(frame())))
    first.start()
    assert inside.wait(20)
    for use in (lambda: delta(frame(seed=1)), delta.reset):  # the end of a frame would undo that
        with pytest.raises(StreamBusyError, match="new_stream"):
            use()
    go_on.set()
    first.join(20)
    delta.observe(None)
    with torch.no_grad():
        torch.testing.assert_close(results[0], model(frame()))
        torch.testing.assert_close(delta(frame(seed=1)), model(frame(seed=1)))


def test_a_stream_is_free_again_after_an_error():
    delta = deltaconvert.convert(net(), backend="reference")
    for _ in range(2):
        with pytest.raises(FrameError):
            delta(frame()[:0])
    delta(frame())


def test_two_threads_run_two_streams(backend):
    model = net()
    delta = deltaconvert.convert(model, backend=backend)
    wrong = []

    def run(seed):
        stream = delta.new_stream()
        x = frame(seed=seed)
        for time in range(20):
            x = x.clone()
            x[time % 2, :, :2, :3] = torch.randn(3, 2, 3)
            with torch.no_grad():
                out, expected = stream(x), model(x)
            if not torch.allclose(out, expected, atol=1e-5):
                wrong.append((seed, time))
    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert not any(t.is_alive() for t in threads)


def test_streams_are_independent(backend):
    model = net()
    delta = deltaconvert.convert(model, backend=backend, threshold=0.2)
    one, two = delta.new_stream(), delta.new_stream()
    first = one(frame())
    two(frame(1, 3, 5, 5, seed=4))
    two.reset()
    assert torch.equal(one(frame()), first)
    assert delta.stream.program is None


# Modes and the observer


def test_inference_mode_before_and_after(backend):
    model = net()
    delta = deltaconvert.convert(model, backend=backend)
    with torch.inference_mode():
        delta(frame())
        x = frame(seed=1)
        out = delta(x)
    with torch.no_grad():
        torch.testing.assert_close(out, model(x))
    out = delta(frame(seed=2))
    assert not out.requires_grad
    assert not out.is_inference()
    with torch.inference_mode():
        torch.testing.assert_close(delta(x), model(x))


def test_no_gradients_are_kept(backend):
    delta = deltaconvert.convert(net(), backend=backend)
    out = delta(frame().requires_grad_())
    assert not out.requires_grad
    assert torch.is_grad_enabled()


def test_frames_in_any_memory_format(backend):
    model = net()
    delta = deltaconvert.convert(model, backend=backend)
    x = frame(seed=5)
    for other in (x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3).contiguous()
                  .transpose(2, 3), x[:, :, :, :], frame(2, 6, 16, 9)[:, ::2, ::2]):
        with torch.no_grad():
            torch.testing.assert_close(delta(other), model(other))


def test_the_frame_may_be_overwritten_afterwards(backend):
    delta = deltaconvert.convert(net(), backend=backend)
    x = frame()
    first = delta(x)
    x.fill_(9)
    assert torch.equal(delta(frame()), first)


def test_the_observer_sees_every_node_with_value_and_mask(backend):
    delta = deltaconvert.convert(net(), backend=backend)
    seen = []
    delta.observe(lambda node, edge: seen.append((node.about.name, edge.value.shape,
                                                  edge.mask.shape)))
    delta(frame())
    expected = [("input_1", (2, 3, 8, 9), (2, 8, 9)), ("_0", (2, 4, 8, 9), (2, 8, 9)),
                ("_2", (2, 4, 3, 4), (2, 3, 4))]
    assert seen == expected
    delta(frame(1, 3, 5, 5))
    assert len(seen) == 6, "a new state is observed too"
    delta.observe(None)
    delta(frame())
    assert len(seen) == 6


def test_work_is_counted(backend):
    delta = deltaconvert.convert(net(), backend=backend)
    x = frame()
    delta(x)
    full = delta.stream.last["_0"]
    assert full.needed == full.dense == 2 * 72 * 4 * 3 * 9
    x[0, :, 4, 4] += 1
    delta(x)
    work = delta.stream.last["_0"]
    assert (work.pixels_in, work.candidates, work.pixels_out) == (1, 9, 9)
    assert work.needed == 9 * 4 * 3 * 9
    assert work.scheduled >= work.needed
    assert delta.statistics["_0"].frames == 2
    assert delta.statistics["_0"].needed == full.needed + work.needed


# Thresholds


@pytest.mark.parametrize("norm", ["max", "rms"])
def test_the_block_test_obeys_its_bound(backend, norm):
    """A held pixel is off by the cap at most, and a block's mean by the threshold."""
    threshold, cap = 0.05, 0.3
    delta = deltaconvert.convert(Model(lambda self, x: x * 1), backend=backend, norm=norm,
                                 input_test="block", input_threshold=threshold, input_cap=cap)
    generator = torch.Generator().manual_seed(1)
    x = frame(2, 3, 19, 21)
    held = 0
    for time in range(30):
        x = x + 0.1 * torch.randn(x.shape, generator=generator)
        if time % 5 == 4:
            x[time % 2, :, 9:11, 3:5] += 0.5
        difference = x - delta(x)
        size = difference.abs().amax(1) if norm == "max" else difference.square().mean(1).sqrt()
        assert size.max() <= cap * (1 + 1e-6)
        mean = F.avg_pool2d(difference, 8, ceil_mode=True)
        size_of_mean = mean.abs().amax(1) if norm == "max" else mean.square().mean(1).sqrt()
        assert size_of_mean.max() <= threshold * (1 + 1e-5)
        held += int((size > threshold).sum())
    assert held > 100, "noise above the threshold is what blocks hold back"


def test_blocks_are_held_or_replaced_together(backend):
    delta = deltaconvert.convert(Model(lambda self, x: x * 1), backend=backend, input_test="block",
                                 input_threshold=0.1, input_cap=1.0)
    x = torch.zeros(1, 1, 12, 20)
    delta(x)
    x = x + 0.05
    x[..., :8, 8:16] += 0.06
    counts_by_block = []
    delta.observe(lambda node, edge: counts_by_block.append(edge.mask.clone()))
    delta(x)
    mask = counts_by_block[0][0]
    assert mask[:8, 8:16].all()
    assert mask.sum() == 64
    x[..., 9, 17] += 2
    counts_by_block.clear()
    delta(x)
    assert counts_by_block[0][0, 8:, 16:].all()
    assert counts_by_block[0].sum() == 16


def test_thresholds_in_standard_deviations_are_settled_at_a_lanes_first_frame(backend):
    delta = deltaconvert.convert(nn.Conv2d(1, 4, 1), backend=backend, nodes={"*": 0.5},
                                 threshold_unit="std", input_threshold=0.01)
    x = frame(2, 1, 6, 6)
    x[1] *= 10
    first = delta(x)
    edge = delta.stream._state.edges["conv2d"]
    settled = edge.threshold.copy()
    for lane in range(2):
        assert settled[lane] == pytest.approx(0.5 * float(first[lane].std()), rel=1e-5)
    assert settled[1] > 5 * settled[0]
    assert delta.stream._state.edges["input_1"].threshold.tolist() == [0.01, 0.01]
    delta(x * 3)
    assert edge.threshold.tolist() == settled.tolist(), "settled once"
    delta.reset([0])
    second = delta(x * 3)
    assert edge.threshold[0] == pytest.approx(0.5 * float(second[0].std()), rel=1e-5)
    assert edge.threshold[1] == settled[1]


def test_what_is_truncated_is_never_lost(backend):
    """Steps below the threshold that add up are passed on."""
    delta = deltaconvert.convert(Model(lambda self, x: x * 2 + 0), backend=backend,
                                 nodes={"*": 0.5})
    x = torch.zeros(1, 1, 4, 4)
    delta(x)
    outputs = []
    for _ in range(20):
        x = x + 0.1
        outputs.append(float(delta(x)[0, 0, 1, 1]))
        assert abs(outputs[-1] - 2 * float(x[0, 0, 0, 0])) <= 0.5 * 2 + 1e-5
    assert len(set(outputs)) < 12, "something was held back"
    assert outputs[-1] >= 3


# Memory


@pytest.mark.parametrize("backend", [*BACKENDS, "paper"])
def test_the_memory_of_a_stream_is_free_with_it(backend):
    delta = deltaconvert.convert(net(), frame(), backend=backend)
    stream = delta.new_stream()
    gc.collect()
    gc.disable()
    try:
        held = []
        for size in ((2, 3, 8, 9), (2, 3, 9, 10)):
            for seed in range(2):
                stream(frame(*size, seed=seed))
            held.append(weakref.ref(stream._state))
        assert [state() is None for state in held] == [True, False]
        del stream
        assert held[1]() is None
    finally:
        gc.enable()


def test_autocast_around_a_call_is_obeyed_as_by_the_dense_model():
    conv, frame = nn.Conv2d(3, 2, 3), torch.randn(1, 3, 6, 7)
    delta = deltaconvert.convert(conv)
    for enabled in (False, True, False, True):
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            torch.testing.assert_close(delta(frame), conv(frame))


def test_a_frame_without_numbers_is_refused():
    delta = deltaconvert.convert(nn.Conv2d(3, 2, 3, device="meta"))
    with pytest.raises(FrameTypeError, match="on the meta device"):
        delta(torch.rand(1, 3, 6, 7, device="meta"))


@pytest.mark.parametrize("modules", [None, ["0"]])
def test_weights_that_were_written_in_place_count_from_the_next_reset(modules):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    model = nn.Sequential(body, nn.Conv2d(4, 2, 1)).eval()
    delta = deltaconvert.convert(model, modules=modules)
    other, frame = delta.new_stream(), torch.rand(1, 3, 8, 9)
    torch.testing.assert_close(delta(frame), model(frame))
    other(frame)
    for module in model, delta:
        with torch.no_grad():
            next(module.parameters()).mul_(2)  # an average of weights, a trainer's step
            module.get_parameter("0.1.bias").data = torch.ones(4)
    delta.reset()
    torch.testing.assert_close(delta(frame), model(frame))
    other.reset()
    torch.testing.assert_close(other(frame), model(frame))
    with torch.no_grad():
        for module in model, delta:
            next(module.parameters()).add_(1)
    new = delta.new_stream()
    new.reset()  # before its first frame
    torch.testing.assert_close(new(frame), model(frame))


def test_a_reset_compiles_nothing_anew_where_only_the_model_writes():
    """Its own code writes into a buffer when it is tried on a frame."""
    delta = deltaconvert.convert(nn.Sequential(nn.Conv2d(3, 4, 3), _Counts()).eval())
    frame = torch.rand(1, 3, 8, 9)
    delta(frame)
    program = delta.stream.program
    delta.reset()
    delta(frame)
    assert delta.stream.program is program


@pytest.mark.parametrize("modules", [None, ["0"]])
def test_a_running_stream_is_not_reset(modules):
    delta = deltaconvert.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(),
                                 modules=modules)
    delta.observe(lambda node, edge: delta.reset())
    with pytest.raises(StreamBusyError):
        delta(torch.rand(1, 3, 8, 9))
    with pytest.raises(InputError, match=r"lanes=1: give a list, \[1\]"):
        delta.reset(lanes=1)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.int64, torch.float16])
@pytest.mark.parametrize("wanted", [None, torch.float32, torch.float64, torch.bfloat16])
def test_outputs_are_copied_as_pytorch_copies_them(stored, wanted):
    value = (100 * torch.randn(2, 4, 5, 6)).to(stored).to(memory_format=torch.channels_last)
    for source in (value, value[:, 1:3], value[:, :, 0], value[:0], value.sum()):
        copied, expected = copy(source, wanted), copy_value(source, wanted)
        assert copied.dtype == expected.dtype
        assert copied.stride() == expected.stride() or not source.numel()
        assert torch.equal(copied, expected)
        copied.zero_()
        assert torch.equal(copy_value(source, wanted), expected)


def test_threads_that_begin_while_a_frame_runs_have_all_of_pytorchs_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        delta = deltaconvert.convert(nn.Conv2d(3, 32, 3).eval())
        frame, stop, seen = torch.rand(1, 3, 360, 640), threading.Event(), []
        delta(frame)

        def frames():
            while not stop.is_set():
                delta(frame)

        def look():
            torch.ones(2).add(1)
            seen.append(torch.get_num_threads())

        running = threading.Thread(target=frames)
        running.start()
        for _ in range(20):
            looking = threading.Thread(target=look)
            looking.start()
            looking.join()
        stop.set()
        running.join()
        assert seen == [2] * 20
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("call", ["module", "stream", "within"])
def test_torch_compile_around_it_leaves_it_alone(call):
    """It followed every line, down to the loops, which then got what is no number."""
    model = net()
    delta = deltaconvert.convert(model)
    called = {"module": delta, "stream": delta.new_stream(),
              "within": lambda x: delta(x.mul(1)).add(0)}[call]
    compiled = torch.compile(called, backend="eager")
    for seed in range(4):
        torch.testing.assert_close(compiled(frame(seed=seed)), model(frame(seed=seed)).detach())


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("modules", [None, ["0"]])
@pytest.mark.parametrize("follow", [
    lambda delta, frame: torch.export.export(delta, (frame,)),
    lambda delta, frame: torch.jit.trace(delta, frame)], ids=["export", "trace"])
def test_an_export_of_it_is_refused(follow, modules):
    """A trace kept the first frame's answer, as a constant."""
    delta = deltaconvert.convert(net(), modules=modules)
    delta(frame())
    with pytest.raises(UnsupportedError, match="is not exported, because what a stream keeps from"):
        follow(delta, frame())


@pytest.mark.parametrize("limit", ["PROGRAM_BYTES", "MOST_PROGRAMS"])
def test_frames_of_many_sizes_do_not_fill_the_memory(monkeypatch, limit):
    monkeypatch.setattr(f"deltaconvert.module.{limit}", 8 if limit == "MOST_PROGRAMS" else 0)
    delta = deltaconvert.convert(net(), backend="reference")
    first = delta.new_stream()
    frames = [frame(1, 3, 8, 8 + extra) for extra in range(12)]
    first(frames[0])
    for one in frames:
        delta(one)
    assert len(delta._programs) == 8
    program = delta.stream.program
    delta(frames[-1])
    assert delta.stream.program is program  # not compiled again
    kept = first.program
    first(frames[0])
    assert first.program is kept


@pytest.mark.parametrize("room", [0, 1 << 30])
def test_a_clip_that_goes_round_through_many_sizes_finds_most_programs_again(monkeypatch, room):
    """With the last used kept each would be dropped just before its turn."""
    monkeypatch.setattr("deltaconvert.module.PROGRAM_BYTES", room)
    delta = deltaconvert.convert(net(), backend="reference")
    compiled, made = [], delta._specialize
    delta.__dict__["_specialize"] = lambda frames: compiled.append(len(frames)) or made(frames)
    for _ in range(10):
        for extra in range(9):
            delta(frame(1, 3, 8, 8 + extra))
    assert len(compiled) < 60 if room == 0 else len(compiled) == 9
    assert all(program.nbytes > 3 * 4 * 9 for program in delta._programs.values())


class _Mixed(nn.Module):
    """Of everything for which tensors are made on the way: tables, scales, moves, resizing."""

    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.b, self.last = nn.Conv2d(32, 32, 3, padding=1), nn.GroupNorm(1, 8)
        self.layer, self.pad = nn.LayerNorm(32, elementwise_affine=False), nn.ReflectionPad2d(1)

    def forward(self, x):
        x = self.norm(self.a(x).tanh())
        x = x + self.b(x).roll(1, 1)
        x = self.layer(self.pad(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = x.view(x.shape[0], 2, 16, *x.shape[2:]).transpose(1, 2).reshape(x.shape)
        x = F.interpolate(x, scale_factor=1.5, mode="bilinear").mul(0.5).exp()
        return self.last(F.pixel_shuffle(x, 2))


@pytest.mark.parametrize("threshold", [0, 1e-6])
@pytest.mark.parametrize("default", [torch.float64, torch.float16, "meta"])
def test_what_pytorch_makes_by_default_is_nobodys_concern(backend, default, threshold):
    torch.manual_seed(0)
    model = _Mixed().eval()
    clip = [frame(1, 3, 8, 9)]
    for column in range(3):
        clip.append(clip[-1].clone())
        clip[-1][..., column] += 1
    expected = [model(f).detach() for f in clip]
    before = torch.get_default_dtype()
    torch.set_default_device(default) if default == "meta" else torch.set_default_dtype(default)
    try:
        delta = deltaconvert.convert(model, backend=backend, threshold=threshold,
                                     threshold_unit="std" if threshold else "absolute")
        answers = [delta(f) for f in clip]
        assert deltaconvert.validate(model, delta, clip).passed
    finally:
        torch.set_default_dtype(before)
        torch.set_default_device(None)
    for answer, one in zip(answers, expected, strict=True):
        torch.testing.assert_close(answer, one, rtol=1e-4, atol=1e-4)


def test_threads_with_frames_of_a_new_size_compile_it_once(monkeypatch):
    delta = deltaconvert.convert(nn.Conv2d(3, 4, 3), backend="reference")
    ready = threading.Barrier(3)
    compiled, specialize = [], type(delta)._specialize

    def slowly(self, frames):
        compiled.append(tuple(frames[0].shape))
        threading.Event().wait(0.2)
        return specialize(self, frames)

    monkeypatch.setattr(type(delta), "_specialize", slowly)

    def run():
        stream = delta.new_stream()
        ready.wait()
        stream(torch.ones(1, 3, 8, 8))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert compiled == [(1, 3, 8, 8)]
