"""What users of the published library met, each as a case that works here.

The names of the tests are the complaints. All models are ordinary definitions, used as
they are; each test runs on every backend that promises exact outputs.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltaconvert
from examples.digits_cnn import DigitsCNN
from examples.pose_resnet import pose_resnet50

BACKENDS = ["reference", "cpu"]


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def trained(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give a model weights and statistics that no default would have, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.2)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            nn.init.normal_(module.bias, 0.1, 0.1, generator=generator)
    return model.eval()


def clip(*shape: int, frames: int = 5, seed: int = 0) -> list[Tensor]:
    """Frames of which a corner of a few pixels moves."""
    generator = torch.Generator().manual_seed(seed)
    frame = torch.randn(shape, generator=generator)
    made = [frame]
    for time in range(1, frames):
        frame = frame.clone()
        frame[..., time:time + 3, time:time + 4] = torch.randn(
            *shape[:-2], 3, 4, generator=generator)
        made.append(frame)
    return made


def assert_same(model: nn.Module, frames: list[Tensor], backend: str, **settings) -> None:
    """Convert and compare every frame's output with the dense model's."""
    delta = deltaconvert.convert(model, backend=backend, **settings)
    for time, frame in enumerate(frames):
        with torch.no_grad():
            expected = model(frame.clone())
        worst = (delta(frame) - expected).abs().max() / expected.abs().max()
        assert worst < 2e-6, f"frame {time}: {worst:.2g} of the largest number"


def test_filters_need_no_processing_step_whatever_their_layout(backend):
    model = nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3), nn.ReLU(), nn.Conv2d(8, 4, (3, 7)))
    assert_same(model, clip(1, 3, 24, 30), backend)
    assert_same(model.to(memory_format=torch.channels_last), clip(1, 3, 24, 30), backend)


def test_filters_follow_weights_that_are_loaded_later(backend):
    model, other = (trained(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), s)
                    for s in (1, 2))
    delta = deltaconvert.convert(model, backend=backend)
    frame = clip(1, 3, 9, 9)[0]
    delta(frame)
    delta.load_state_dict(other.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(delta(frame), other(frame))


def test_cpu_tensors_are_taken():
    delta = deltaconvert.convert(nn.Conv2d(3, 2, 3))
    assert delta(torch.zeros(1, 3, 8, 8)).device.type == "cpu"


def test_batches_of_8_then_16_then_2_of_unrelated_digits_predict_the_same(backend):
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    pictures = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    model = DigitsCNN()
    train_briefly(model, pictures[:1000], labels[:1000])
    delta = deltaconvert.convert(model, backend=backend)
    start = 1000
    for size in (8, 8, 16, 16, 2, 8):
        batch = pictures[start:start + size]
        with torch.no_grad():
            expected = model(batch)
        actual = delta(batch)
        assert actual.argmax(1).tolist() == expected.argmax(1).tolist()
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
        start += size
    accuracy = (delta(pictures[1100:1700]).argmax(1) == labels[1100:1700]).float().mean()
    assert accuracy > 0.8, f"the network was trained, so its digits mean something: {accuracy}"


def train_briefly(model: nn.Module, pictures: Tensor, labels: Tensor) -> None:
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(8):
        for rows in torch.randperm(len(pictures)).split(100):
            optimizer.zero_grad()
            F.cross_entropy(model(pictures[rows]), labels[rows]).backward()
            optimizer.step()
    model.eval()


def test_sparsifying_twice_is_refused_and_chaining_two_models_works(backend):
    first = deltaconvert.convert(nn.Conv2d(3, 4, 3), backend=backend)
    with pytest.raises(deltaconvert.InputError, match="converted already"):
        deltaconvert.convert(first)
    dense = nn.Conv2d(4, 2, 3)
    second = deltaconvert.convert(dense, backend=backend)
    for frame in clip(1, 3, 12, 12):
        middle = first(frame)
        with torch.no_grad():
            torch.testing.assert_close(second(middle), dense(middle))


class Residual(nn.Module):
    """Add and activation on lines of their own, and one ReLU for everything."""

    def __init__(self, activation: nn.Module):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.act = activation

    def forward(self, x):
        x = self.act(self.first(x))
        out = self.second(x)
        out = out + x
        out = self.act(out)
        return out


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU(inplace=True), nn.Sigmoid(),
                                        nn.LeakyReLU(0.3), nn.Hardswish(), nn.SiLU()], ids=repr)
def test_add_and_activation_as_two_layers(activation, backend):
    assert_same(Residual(activation), clip(2, 3, 11, 13), backend)


def test_an_activation_that_is_not_zero_at_zero_behind_an_add(backend):
    class Gate(nn.Module):
        def forward(self, x):
            return torch.sigmoid(x + x.flip(3))
    assert_same(Gate(), clip(1, 2, 8, 9), backend)


def test_no_editing_of_sequentials_and_one_relu_serves_all(backend):
    relu = nn.ReLU()
    block = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), relu,
                          nn.Sequential(nn.Conv2d(5, 5, 3), relu), relu)
    assert_same(trained(block), clip(1, 3, 14, 12), backend)


def test_pose_resnet_traces_and_agrees(backend):
    model = trained(pose_resnet50(num_joints=5))
    frames = [f * 0.3 for f in clip(1, 3, 64, 48, frames=3)]
    delta = deltaconvert.convert(model, backend=backend, strict=True)
    for frame in frames:
        with torch.no_grad():
            expected = model(frame)
        error = (delta(frame) - expected).square().mean().sqrt() / expected.square().mean().sqrt()
        assert error < 1e-5


@pytest.mark.parametrize("options", [
    {"kernel_size": 2}, {"kernel_size": 4, "padding": 1}, {"kernel_size": (3, 7), "padding": 2},
    {"kernel_size": 9, "padding": 4}, {"kernel_size": 3, "stride": 3},
    {"kernel_size": 5, "stride": (1, 4)}, {"kernel_size": 3, "groups": 2},
    {"kernel_size": 3, "dilation": (2, 3), "padding": 3}, {"kernel_size": 6, "groups": 4},
], ids=str)
def test_kernel_sizes_strides_groups_and_dilations_beyond_the_usual(options, backend):
    assert_same(nn.Conv2d(4, 8, **options), clip(1, 4, 19, 23), backend)


def test_squeeze_and_excitation_and_nearest_upsampling(backend):
    class Excited(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1)

        def forward(self, x):
            y = F.relu(self.conv(x))
            y = y * torch.sigmoid(self.fc(F.adaptive_avg_pool2d(y, 1)))
            return F.interpolate(y, scale_factor=2)
    assert_same(Excited(), clip(2, 3, 10, 12), backend)


def test_two_models_keep_their_own_thresholds(backend):
    """One global object held the thresholds of all models."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 1, 1, bias=False))
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    coarse = deltaconvert.convert(model, backend=backend, threshold=1.0)
    exact = deltaconvert.convert(model, backend=backend)
    for delta in (coarse, exact):
        delta(torch.zeros(1, 1, 4, 4))
    small = torch.full((1, 1, 4, 4), 0.5)
    assert coarse(small).unique().tolist() == [0.0]
    assert exact(small).unique().tolist() == [0.5]
    assert coarse(torch.full((1, 1, 4, 4), 1.25)).unique().tolist() == [1.25]


def test_memory_is_not_much_larger_than_the_dense_activations(backend):
    """At most one value, one mask byte a pixel and small working memory a fused node."""
    model = trained(nn.Sequential(*(layer for _ in range(6) for layer in (
        nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()))))
    frame = torch.zeros(1, 16, 64, 64)
    delta = deltaconvert.convert(model, backend=backend, threads=2)
    delta(frame)
    dense_activations = 18 * frame.nbytes
    assert 7 * frame.nbytes <= delta.stream.state_bytes < dense_activations


def test_leaky_relu_has_one_slope_in_every_frame(backend):
    assert_same(nn.LeakyReLU(0.25), clip(1, 2, 9, 9), backend)


def test_an_in_place_activation_does_not_rob_a_second_reader(backend):
    class PreActivation(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(inplace=True)

        def forward(self, x):
            y = self.conv(x)
            return self.conv(self.relu(y)) + y  # y is the rectified one: ReLU wrote into it
    assert_same(PreActivation(), clip(1, 3, 9, 9), backend)


def test_max_pooling_is_padded_with_minus_infinity(backend):
    frames = [f - 10 for f in clip(1, 2, 9, 9)]
    assert_same(nn.MaxPool2d(3, 2, 1), frames, backend)


def test_global_max_pooling_is_no_maximum_of_differences(backend):
    class Peak(nn.Module):
        def forward(self, x):
            return F.adaptive_max_pool2d(x, 1)
    frames = clip(1, 2, 9, 8)
    frames.append(frames[-1] - 1)
    assert_same(Peak(), frames, backend)


def test_a_norms_offset_is_added_once(backend):
    model = trained(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)))
    assert_same(model, clip(1, 3, 11, 12, frames=8), backend)


def test_pixels_outside_the_mask_hold_their_value(backend):
    delta = deltaconvert.convert(nn.Conv2d(2, 2, 3, padding=1), backend=backend)
    frames = clip(1, 2, 12, 12, frames=2)
    before = delta(frames[0])
    after = delta(frames[1])
    untouched = torch.ones(12, 12, dtype=torch.bool)
    untouched[0:5, 0:6] = False
    assert torch.equal(before[..., untouched], after[..., untouched])
    assert not torch.equal(before, after)


def test_the_model_that_was_converted_is_untouched(backend):
    model = Residual(nn.ReLU(inplace=True)).train()
    before = copy.deepcopy(model.state_dict())
    deltaconvert.convert(model, backend=backend)(torch.zeros(1, 3, 8, 8))
    assert model.training
    assert model.act.inplace
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
