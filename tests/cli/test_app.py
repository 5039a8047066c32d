"""The command line as a whole: help, version, exit codes, and what it imports."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import deltaconvert
from deltaconvert.backends.base import create
from deltaconvert.cli import app as app_module
from deltaconvert.cli import main
from deltaconvert.cli.output import coloured, verdict
from deltaconvert.config import Config
from deltaconvert.errors import TraceError


def test_version(cli):
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    backend = create("auto", Config(), device).name
    device = torch.cuda.get_device_name() if cuda else "cpu"
    done = cli("--version")
    assert done.code == 0
    assert done.out == (f"deltaconvert {deltaconvert.__version__}, torch {torch.__version__}, "
                        f"backend {backend}, device {device}\n")


def test_help_lists_the_commands_and_the_exit_codes(cli):
    done = cli("--help")
    assert done.code == 0
    for word in ("demo", "convert", "validate", "run", "inspect", "doctor", "130 interrupted"):
        assert word in " ".join(done.out.split())
    assert "..." not in done.out.partition("Commands:")[2]  # no line is cut off


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


@pytest.mark.parametrize("then", [TraceError("no such name"), ImportError("no such name")])
def test_interrupted_is_130_where_a_library_swallowed_it_and_fails_of_it(cli, then):
    """As a package does that Ctrl-C left half imported."""
    def swallows():
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise then

    app_module.app.command("swallow")(app_module._reporting(swallows))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        done = cli("swallow")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
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


def test_without_arguments_it_shows_help(capsys):
    with pytest.raises(SystemExit):
        main([])
    text = capsys.readouterr()
    assert "Usage: deltaconvert" in text.out + text.err


@pytest.mark.parametrize("command", ["demo", "convert", "validate", "run", "inspect", "doctor"])
def test_every_command_has_json_and_quiet(cli, command):
    said = cli(command, "--help").out
    assert "--json FILE" in " ".join(said.split())
    assert "--quiet" in said


def test_quiet_prints_nothing_but_errors(cli, tmp_path):
    done = cli("doctor", "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")
    done = cli("inspect", tmp_path / "nothing.delta", "-q")
    assert done.out == ""
    assert "nothing.delta does not exist" in done.err


def test_json_on_standard_output_is_all_that_is_there(cli):
    assert json.loads(cli("doctor", "--json", "-").out)["healthy"] is True


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_colour_on_a_terminal_alone(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert coloured("PASSED", "green", Terminal()).startswith("\x1b[")
    assert coloured("PASSED", "green", io.StringIO()) == "PASSED"
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert verdict("figures\n\nFAILED") == "figures\n\n\x1b[31m\x1b[1mFAILED\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert verdict("figures\n\nFAILED") == "figures\n\nFAILED"


def test_piped_output_has_no_colour(cli, converted):
    done = cli("validate", converted, "--source", "synthetic", "--size", "32x48", "--frames", "2")
    assert done.out.endswith("PASSED\n")
    assert "\x1b" not in done.out + done.err
    assert "\x1b" not in cli("inspect", "nothing.delta").err


def test_the_shell_completes_commands_and_flags():
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "_DELTACONVERT_COMPLETE":
        "complete_bash", "COMP_WORDS": "deltaconvert va", "COMP_CWORD": "1"}
    code = "import sys; sys.argv[0] = 'deltaconvert'; from deltaconvert.cli import main; main()"
    for words, number, expected in (("deltaconvert va", "1", "validate"),
                                    ("deltaconvert run --over", "2", "--overlay")):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False,
            env=environment | {"COMP_WORDS": words, "COMP_CWORD": number})
        assert done.stdout.split() == [expected], done.stderr


@pytest.mark.parametrize("error", [
    MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")])
def test_no_memory_is_an_error_of_one_line(cli, error):
    def large():
        raise error

    app_module.app.command("large")(app_module._reporting(large))
    try:
        done = cli("large")
    finally:
        app_module.app.registered_commands.pop()
    assert done.code == 2
    assert done.err.startswith("error: there is not enough memory. Give smaller frames")
