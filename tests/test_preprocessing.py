"""How pictures become frames, and who says so."""

import pytest
import torch
from torch import nn

import deltaconvert
from deltaconvert import ConfigError, Preprocessing
from deltaconvert.clips.decoding import PADDING, Resize
from deltaconvert.errors import InputError
from deltaconvert.model_specs import build_model, preprocessing_of


def test_torchvisions_preset_is_that_of_its_weights():
    found = preprocessing_of("torchvision:resnet18", build_model("torchvision:resnet18"))
    assert found == Preprocessing("rgb", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert preprocessing_of("torchvision:segmentation.fcn_resnet50", nn.Identity()).order == "rgb"


def test_timms_preset_is_the_models():
    model = nn.Identity()
    model.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    assert preprocessing_of("timm:any", model) == Preprocessing("rgb", (0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize("spec", ["timm:any", "module:factory",
                                  "torchvision:ssdlite320_mobilenet_v3_large"])
def test_without_a_preset_nobody_says(spec):
    assert preprocessing_of(spec, nn.Identity()) is None


@pytest.mark.parametrize("settings, said", [
    ({"order": "hsv"}, "channel order 'hsv': choose one of rgb, bgr, gray"),
    ({"mean": (1, 2)}, "mean has 2 numbers, the frames have 3 channels"),
    ({"order": "gray", "std": (1, 1, 1)}, "std has 3 numbers, the frames have 1 channels"),
    ({"std": (0,)}, "std: give numbers above 0"),
    ({"mean": (float("nan"),)}, "give finite numbers"),
])
def test_what_makes_no_sense(settings, said):
    with pytest.raises(ConfigError, match=said):
        Preprocessing(**settings)


def test_it_goes_with_the_model_into_its_file_and_through_other_settings(tmp_path):
    told = Preprocessing("bgr", (0.1, 0.2, 0.3), (2.0,))
    delta = deltaconvert.convert(nn.Conv2d(3, 4, 3), preprocessing=told)
    deltaconvert.save(delta, tmp_path / "a.delta")
    assert deltaconvert.load(tmp_path / "a.delta").preprocessing == told
    assert delta.with_config(delta.config.replace(threshold=1.0)).preprocessing == told


# --- sizes ------------------------------------------------------------------------------


def test_padding_keeps_the_aspect_and_the_whole_picture():
    frame = torch.rand(3, 20, 40)
    resized = Resize((40, 40), "pad")(frame)
    assert resized.shape == (3, 40, 40)
    grey = torch.tensor(PADDING)
    assert torch.equal(resized[:, :10], grey.expand(3, 10, 40))
    assert torch.equal(resized[:, 30:], grey.expand(3, 10, 40))
    assert torch.equal(resized[:, 10:30], frame)


def test_cropping_keeps_the_aspect_and_fills_the_size():
    frame = torch.rand(3, 20, 40)
    assert torch.equal(Resize((20, 20), "crop")(frame), frame[:, :, 10:30])
    assert Resize((30, 20), "crop").scaled((20, 40)) == (30, 60)
    assert Resize((30, 20), "crop")(frame).shape == (3, 30, 20)


def test_stretching_and_leaving_alone():
    frame = torch.rand(3, 20, 40)
    assert Resize((10, 10))(frame).shape == (3, 10, 10)
    assert Resize()(frame) is frame
    assert Resize((20, 40), "pad")(frame) is frame
    for odd in ((7, 31), (33, 5), (1, 1)):
        for fit in ("pad", "crop", "stretch"):
            assert Resize(odd, fit)(frame).shape == (3, *odd)
    with pytest.raises(InputError, match="fit 'bend': choose one of stretch, pad, crop"):
        Resize((1, 1), "bend")
