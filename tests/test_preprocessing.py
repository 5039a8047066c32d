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
    assert found == Preprocessing("rgb", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (224, 224),
                                  256)
    found = preprocessing_of("torchvision:segmentation.fcn_resnet50", nn.Identity())
    assert (found.order, found.size, found.shorter_side) == ("rgb", None, 520)
    swin = preprocessing_of("torchvision:swin_t", nn.Identity())
    assert (swin.size_in_words, swin.interpolation) == ("224x224 out of 232", "bicubic")


def test_timms_preset_is_the_models():
    model = nn.Identity()
    model.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    assert preprocessing_of("timm:any", model) == Preprocessing("rgb", (0.5,) * 3, (0.25,) * 3)
    model.pretrained_cfg |= {"input_size": (3, 256, 320), "crop_pct": 0.875,
                             "interpolation": "bicubic", "crop_mode": "center"}
    assert preprocessing_of("timm:any", model) == Preprocessing(
        "rgb", (0.5,) * 3, (0.25,) * 3, (256, 320), 292, "bicubic")
    model.pretrained_cfg |= {"crop_mode": "squash", "interpolation": "random"}
    assert preprocessing_of("timm:any", model) == Preprocessing(
        "rgb", (0.5,) * 3, (0.25,) * 3, (256, 320))


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
    ({"size": (0, 5)}, r"size=\(0, 5\), shorter_side=None: give height and width"),
    ({"size": (5,)}, "give height and width"),
    ({"shorter_side": -1}, "and a side, in whole pixels"),
    ({"interpolation": "area"}, "interpolation 'area': choose one of bilinear, bicubic, nearest"),
])
def test_what_makes_no_sense(settings, said):
    with pytest.raises(ConfigError, match=said):
        Preprocessing(**settings)


def test_it_goes_with_the_model_into_its_file_and_through_other_settings(tmp_path):
    told = Preprocessing("bgr", (0.1, 0.2, 0.3), (2.0,), (32, 48), 40, "bicubic")
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


def test_as_weights_were_evaluated_is_what_their_library_does():
    """The shorter side is scaled and the middle cut out, as torchvision does to the picture."""
    transforms = pytest.importorskip("torchvision").models.Swin_T_Weights.DEFAULT.transforms()
    picture = torch.rand(3, 300, 500)
    told = preprocessing_of("torchvision:swin_t", nn.Identity())
    resize = Resize(told.size, "crop", told.shorter_side, told.interpolation)
    assert resize.scaled((300, 500)) == (232, 386)
    assert resize.of((300, 500)) == (224, 224)
    # Its values are not clamped before they are normalised.
    torch.testing.assert_close(told(resize(picture)), transforms(picture), rtol=0, atol=0.5)
    assert (told(resize(picture)) - transforms(picture)).abs().mean() < 1e-3
    alone = Resize(shorter_side=15)
    assert alone.of((20, 40)) == alone(torch.rand(3, 20, 40)).shape[1:] == (15, 30)


def test_what_a_size_reads_as():
    assert Preprocessing().size_in_words == ""
    assert not Preprocessing().has_size
    assert Preprocessing(size=(224, 224)).size_in_words == "224x224"
    assert Preprocessing(size=(224, 192), shorter_side=256).size_in_words == "224x192 out of 256"
    assert Preprocessing(shorter_side=520).size_in_words == "shorter side 520"


def test_it_is_said_in_a_few_words():
    assert str(Preprocessing()) == "rgb, values from 0 to 1"
    assert str(Preprocessing("bgr", std=(0.5,))) == "bgr, minus 0, over 0.5"
    assert str(Preprocessing("gray", (0.25,))) == "gray, minus 0.25, over 1"


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
