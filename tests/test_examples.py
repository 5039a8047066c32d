"""The example networks: the shapes they promise, and the outputs of the originals."""

import numpy as np
import pytest
import torch
from torch import nn

from deltaconvert.checkpoints import apply_state_dict, load_state_dict
from examples.digits_cnn import DigitsCNN
from examples.fastestdet import FastestDet, cell_boxes, decode, suppress
from examples.pose_resnet import pose_resnet50
from examples.vdsr import VDSR


def loaded(model: nn.Module, path) -> nn.Module:
    apply_state_dict(model, load_state_dict(path))
    return model.eval()


class TestFastestDet:
    def test_answers_as_the_original_network(self, data_file):
        model = loaded(FastestDet(), data_file("fastestdet.pth"))
        reference = np.load(data_file("fastestdet_plaza0_640x352.npz"))
        frame = torch.from_numpy(reference["frame_bgr"]).permute(2, 0, 1)[None] / 255
        with torch.inference_mode():
            output = model(frame)
        expected = torch.from_numpy(reference["output"])
        assert output.shape == expected.shape == (1, 85, 22, 40)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-4)
        boxes = decode(output)[0]
        # 36 boxes, by the original's own rules; most of them people, best first.
        assert len(boxes) == 36
        assert int((boxes[:, 5] == 0).sum()) > 20
        assert bool((boxes[:-1, 4] >= boxes[1:, 4]).all())
        assert float(boxes[:, 4].min()) > 0.4

    def test_needs_no_more_and_no_fewer_weights_than_the_file_has(self, data_file):
        state = load_state_dict(data_file("fastestdet.pth"))
        assert set(FastestDet().state_dict()) == set(state)

    def test_a_cell_becomes_the_box_of_the_fact_sheet(self):
        regression = torch.zeros(1, 4, 2, 4)
        regression[0, :, 1, 2] = torch.tensor([0.5, -0.5, 1.0, -1.0])
        box = cell_boxes(regression)[0, 1 * 4 + 2]
        x, y = (np.tanh(0.5) + 2) / 4, (np.tanh(-0.5) + 1) / 2
        w, h = 1 / (1 + np.exp(-1.0)), 1 / (1 + np.exp(1.0))
        expected = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
        assert box.tolist() == pytest.approx(expected, abs=1e-6)

    def test_decode_scores_and_thresholds(self):
        output = torch.zeros(2, 85, 1, 2)
        output[0, 0, 0, 1] = 0.9  # objectness
        output[0, 5 + 7, 0, 1] = 0.5  # class 7
        found, nothing = decode(output, score=0.7)
        score = 0.9**0.6 * 0.5**0.4
        assert found.shape == (1, 6)
        assert found[0, 4:].tolist() == pytest.approx([score, 7])
        assert nothing.shape == (0, 6)
        assert len(decode(output, score=score + 1e-3)[0]) == 0

    def test_the_better_of_two_overlapping_boxes_of_a_class_stays(self):
        boxes = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 0.5], [0, 0, 1, 0.44], [2, 2, 3, 3.0]])
        scores = torch.tensor([0.6, 0.9, 0.5, 0.7])
        same, other = torch.tensor([0, 0, 0, 0]), torch.tensor([1, 0, 0, 0])
        # IoU 0.5 with box 0 and 0.88 with box 2; boxes 0 and 2 alone have 0.44.
        assert suppress(boxes, scores, same).tolist() == [1, 3]
        assert suppress(boxes, scores, other).tolist() == [1, 3, 0]
        assert suppress(boxes[[0, 2]], scores[[0, 2]], same[:2]).tolist() == [0, 1]


class TestVDSR:
    def test_adds_detail_to_a_blurred_picture(self, data_file):
        """The published weights raise the PSNR of an enlarged picture; others would not."""
        model = loaded(VDSR(), data_file("vdsr.pth"))
        frame = np.load(data_file("fastestdet_plaza0_640x352.npz"))["frame_bgr"]
        blue, green, red = torch.from_numpy(frame[96:256, 200:400]).float().unbind(-1)
        sharp = ((65.5 * red + 128.6 * green + 25.0 * blue) / 255 + 16)[None, None] / 255
        small = resized(sharp, 0.5)
        blurred = resized(small, 2.0)
        with torch.inference_mode():
            restored = model(blurred)
        assert restored.shape == blurred.shape
        assert psnr(restored, sharp) > psnr(blurred, sharp) + 0.5

    def test_twenty_convolutions_without_bias(self):
        convolutions = [m for m in VDSR().modules() if isinstance(m, nn.Conv2d)]
        assert len(convolutions) == 20
        assert all(m.bias is None and m.kernel_size == (3, 3) for m in convolutions)


def resized(x: torch.Tensor, scale: float) -> torch.Tensor:
    return nn.functional.interpolate(x, scale_factor=scale, mode="bicubic", antialias=scale < 1)


def psnr(x: torch.Tensor, reference: torch.Tensor) -> float:
    return float(-10 * (x - reference).square().mean().log10())


@pytest.mark.parametrize("joints", [16, 17])
def test_pose_resnet_gives_one_heat_map_a_joint(joints):
    model = pose_resnet50(joints).eval()
    with torch.inference_mode():
        assert model(torch.rand(1, 3, 64, 96)).shape == (1, joints, 16, 24)
    transposed = [m for m in model.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert [(m.in_channels, m.out_channels) for m in transposed] == [(2048, 256)] + [(256, 256)] * 2


def test_digits_cnn_learns_handwritten_digits():
    datasets = pytest.importorskip("sklearn.datasets")
    pictures, labels = datasets.load_digits(return_X_y=True)
    x = torch.tensor(pictures, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)
    torch.manual_seed(0)
    model = DigitsCNN()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    shuffled = torch.cat([torch.randperm(1280) for _ in range(5)])
    for batch in shuffled.split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    with torch.inference_mode():
        right = (model.eval()(x[1280:]).argmax(1) == y[1280:]).float().mean()
    assert float(right) > 0.9  # a guess is right one time in ten
