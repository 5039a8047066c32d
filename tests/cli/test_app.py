"""The command line as a whole: help, version, exit codes, and what it imports."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import deltaconvert
from deltaconvert.cli import app as app_module
from deltaconvert.cli import main
from deltaconvert.config import Config


def test_version(cli):
    cuda = torch.cuda.is_available()
    backend, device = ("reference", torch.cuda.get_device_name()) if cuda else ("cpu", "cpu")
    done = cli("--version")
    assert done.code == 0
    assert done.out == (f"deltaconvert {deltaconvert.__version__}, torch {torch.__version__}, "
                        f"backend {backend}, device {device}\n")


def test_help_lists_the_commands_and_the_exit_codes(cli):
    done = cli("--help")
    assert done.code == 0
    for word in ("demo", "convert", "validate", "inspect", "130 interrupted"):
        assert word in " ".join(done.out.split())


@pytest.mark.parametrize("words", [("convert",), ("nonsense",), ("inspect", "--nonsense")])
def test_wrong_usage_is_2(cli, words):
    done = cli(*words)
    assert done.code == 2
    assert "Traceback" not in done.err


def test_an_error_is_one_message_and_its_code(cli, tmp_path):
    done = cli("inspect", tmp_path / "nothing.delta")
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert "nothing.delta" in done.err
    assert "Traceback" not in done.err


def test_interrupted_is_130(cli, monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    app_module.app.command("wait")(app_module._reporting(interrupted))
    try:
        done = cli("wait")
    finally:
        app_module.app.registered_commands.pop()
    assert (done.code, done.err) == (130, "interrupted\n")


def test_every_setting_is_a_flag(cli):
    """Names and defaults come from the dataclass, so none can be forgotten."""
    said = " ".join(cli("convert", "--help").out.split())
    for field in dataclasses.fields(Config):
        name = {"nodes": "node"}.get(field.name, field.name)
        assert f"--{name.replace('_', '-')}" in said
    assert "--no-dense-fallback" in said
    assert "what a node may hold back" in said  # the docstring's own words


def test_python_m_deltaconvert():
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-m", "deltaconvert", "--version"], env=environment,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith(f"deltaconvert {deltaconvert.__version__}, torch ")


def test_importing_the_package_imports_no_command_line():
    code = ("import sys, deltaconvert, deltaconvert.cli\n"
            "print(sorted({'typer', 'rich', 'matplotlib', 'av'} & set(sys.modules)))")
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(root)},
                          capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_without_arguments_it_shows_help(capsys):
    with pytest.raises(SystemExit):
        main([])
    text = capsys.readouterr()
    assert "Usage: deltaconvert" in text.out + text.err
