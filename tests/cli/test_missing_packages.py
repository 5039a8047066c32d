"""A package that is not installed is named in one line."""

from __future__ import annotations

import sys

import pytest

from tests.cli.conftest import SPEC


@pytest.fixture
def hide(monkeypatch):
    """Make a package one that is not installed."""

    def hidden(package):
        class Finder:
            @staticmethod
            def find_spec(name, path=None, target=None):
                if name == package:
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])

    return hidden


def test_of_the_command_line(cli, hide, monkeypatch):
    monkeypatch.delitem(sys.modules, "deltaconvert.cli.app", raising=False)
    hide("typer")
    done = cli("--version")
    assert done.code == 3
    assert done.err == ("error: the command line needs the package typer, which is not installed. "
                        "Do: pip install typer\n")


def test_of_a_command(folder, cli, hide):
    hide("safetensors")
    (folder / "plain.safetensors").write_bytes(b"8 bytes and more")
    done = cli("convert", "plain.safetensors", "--model", SPEC, "-o", "a.delta")
    assert done.code == 3
    assert done.err == ("error: this needs the package safetensors, which is not installed. Do: "
                        "pip install safetensors\n")


def test_what_is_broken_is_not_said_to_be_missing(cli, monkeypatch):
    monkeypatch.delitem(sys.modules, "deltaconvert.cli.app", raising=False)
    monkeypatch.setitem(sys.modules, "deltaconvert.cli.bench", None)
    with pytest.raises(ModuleNotFoundError, match=r"deltaconvert\.cli\.bench"):
        cli("--version")
