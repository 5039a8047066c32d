"""Models by the names that a user may give."""

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from deltaconvert.errors import InputError
from deltaconvert.model_specs import build_model, parse_model_args


def forget(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Modules of these names are imported anew in the test, and as before behind it."""
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        del sys.modules[name]


def write_module(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, source: str) -> None:
    """Write a module into a folder that becomes the current one."""
    (folder / f"{name}.py").write_text(source)
    monkeypatch.chdir(folder)
    forget(monkeypatch, name)


class TestBuildTorchvision:
    def test_by_name_with_arguments_in_eval_mode(self):
        model = build_model("torchvision:resnet18", {"num_classes": 7})
        assert model.fc.out_features == 7
        assert not model.training

    @pytest.mark.parametrize(
        "name, kind",
        [
            ("lraspp_mobilenet_v3_large", "LRASPP"),
            ("segmentation.lraspp_mobilenet_v3_large", "LRASPP"),
            ("models.detection.ssdlite320_mobilenet_v3_large", "SSD"),
            ("video.r3d_18", "VideoResNet"),
        ],
    )
    def test_segmentation_detection_and_video_without_a_download(self, name, kind, monkeypatch):
        monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: 1 / 0)
        assert type(build_model(f"torchvision:{name}")).__name__ == kind

    def test_unknown_name_gives_near_ones(self):
        with pytest.raises(InputError, match=r"torchvision has no model 'resnet5'; did you mean "):
            build_model("torchvision:resnet5")

    def test_wrong_argument(self):
        with pytest.raises(
            InputError,
            match=r"torchvision:resnet18 was called with \(weights=None, clases=3\) and raised "
            r"TypeError: .*clases.*--model-arg name=value",
        ):
            build_model("torchvision:resnet18", {"clases": 3})


class TestBuildTimm:
    def test_missing_package(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(
            InputError, match=r"need the package timm \(.*\)\. Do: pip install timm"
        ):
            build_model("timm:resnet18")

    def test_by_name_never_pretrained(self, tmp_path, monkeypatch):
        write_module(tmp_path, monkeypatch, "timm", FAKE_TIMM)
        monkeypatch.syspath_prepend(tmp_path)
        model = build_model("timm:resnet10t", {"num_classes": 3})
        assert model.options == {"name": "resnet10t", "pretrained": False, "num_classes": 3}

    def test_unknown_name_gives_near_ones(self, tmp_path, monkeypatch):
        write_module(tmp_path, monkeypatch, "timm", FAKE_TIMM)
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(InputError, match=r"no model 'resnet10'; did you mean resnet10t\?"):
            build_model("timm:resnet10")


# timm need not be installed: what is tested is how it is called.
FAKE_TIMM = """
from torch import nn

def list_models():
    return ["resnet10t", "vit_tiny"]

def is_model(name):
    return name in list_models()

def create_model(name, **options):
    model = nn.Identity()
    model.options = {"name": name, **options}
    return model
"""

FACTORIES = """
import sys
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.fc = nn.Linear(width, 2)

class Zoo:
    @staticmethod
    def small():
        return Net(1)

def path_when_called():
    net = Net()
    net.path = list(sys.path)
    return net

def broken():
    raise ValueError("no such depth")

def leaves():
    sys.exit("usage: train.py")

def numbers():
    return [1, 2]

ready = Net()
constant = 3
"""


class TestBuildFromModule:
    @pytest.fixture(autouse=True)
    def _module(self, tmp_path, monkeypatch):
        forget(monkeypatch, "bad_module", "colorsys", "my_nets", "my_nets.small")
        write_module(tmp_path, monkeypatch, "my_factories", FACTORIES)

    def test_class_function_and_nested_name(self):
        assert build_model("my_factories:Net", {"width": 9}).fc.in_features == 9
        assert build_model("my_factories:Zoo.small").fc.in_features == 1

    def test_the_current_folder_is_searched_last_and_the_path_restored(self):
        before = list(sys.path)
        model = build_model("my_factories:path_when_called")
        assert model.path == [*before, os.getcwd()]
        assert sys.path == before

    def test_the_path_is_restored_after_an_error(self):
        before = list(sys.path)
        with pytest.raises(InputError):
            build_model("my_factories:broken")
        assert sys.path == before

    def test_a_file_in_the_current_folder_hides_no_installed_package(self, tmp_path):
        (tmp_path / "colorsys.py").write_text("raise AssertionError('the wrong colorsys')")
        with pytest.raises(InputError, match=r"colorsys:hue: no 'hue' in .*colorsys\.py"):
            build_model("colorsys:hue")

    def test_a_package_without_an_init_file(self, tmp_path):
        (tmp_path / "my_nets").mkdir()
        (tmp_path / "my_nets" / "small.py").write_text(FACTORIES)
        assert build_model("my_nets.small:Net").fc.in_features == 4

    @pytest.mark.parametrize(
        "spec, message",
        [
            ("my_factories:nett", r"no 'nett' in .*my_factories\.py; did you mean Net"),
            ("my_factories:broken", r"called with \(\) and raised ValueError: no such depth"),
            ("my_factories:leaves", r"raised SystemExit: usage: train\.py"),
            ("my_factories:numbers", r"numbers returned a list, not a torch\.nn\.Module"),
            ("my_factories:constant", r"constant is an int, not a function or class"),
            ("my_factories:ready", r"ready is a model already; name a function or class"),
            ("my_models:Net", r"no module 'my_models': it is neither installed nor in the curr"),
            ("my_factories.deep:Net", r"no module 'my_factories\.deep'"),
            ("nets/small.py:Net", r"'nets/small\.py' is not a .* write nets\.small:factory"),
            ("resnet50", r"a model is named torchvision:NAME, .*, got 'resnet50'"),
            ("torchvision:", r"a model is named torchvision:NAME, .*, got 'torchvision:'"),
        ],
    )
    def test_what_cannot_be_built(self, spec, message):
        with pytest.raises(InputError, match=message):
            build_model(spec)

    @pytest.mark.parametrize(
        "source, message",
        [
            ("import yolox_nowhere", "bad_module imports 'yolox_nowhere', which is not installed"),
            ("1 / 0", "importing bad_module raised ZeroDivisionError: division by zero"),
            ("def", "importing bad_module raised SyntaxError: "),
            ("import sys; sys.exit(2)", "importing bad_module raised SystemExit: 2"),
        ],
    )
    def test_modules_that_cannot_be_imported(self, tmp_path, source, message):
        (tmp_path / "bad_module.py").write_text(source)
        with pytest.raises(InputError, match=message):
            build_model("bad_module:Net")


class TestParseModelArgs:
    def test_literals_and_words(self):
        items = ["a=10", "b=[1, 2]", "c=None", "d=True", "e=bilinear", "f='10'", "g=", "h=x=1"]
        assert parse_model_args(items) == {
            "a": 10, "b": [1, 2], "c": None, "d": True,
            "e": "bilinear", "f": "10", "g": "", "h": "x=1",
        }  # fmt: skip

    @pytest.mark.parametrize(
        "items, message",
        [
            (["width"], "a model argument is name=value, got 'width'"),
            (["=3"], "a model argument is name=value, got '=3'"),
            (["a-b=3"], "a model argument is name=value, got 'a-b=3'"),
            (["a=1", "a=2"], "the model argument 'a' is given twice"),
            (["aux=false"], "aux=false: Python writes aux=False; the word is aux=\"'false'\""),
            (["aux=none"], "aux=none: Python writes aux=None"),
        ],
    )
    def test_refused(self, items, message):
        with pytest.raises(InputError) as caught:
            parse_model_args(items)
        assert message in str(caught.value)
