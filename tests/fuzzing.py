"""Fuzzing of what reads files: mutated files, headers, graphs and checkpoints.

Every case is made from a seed, so that a number is enough to see it again::

    python -m tests.fuzzing --seconds 600             # make fuzz
    python -m tests.fuzzing --first 1234 --cases 1    # one case again

A case passes where reading ends in a model or in a `DeltaConvertError`: no other exception,
no crash, no hang, no file written, no process started, and no more memory than
`ALLOWANCE_BYTES` beside twice the file. Cases run in worker processes, which limits the
memory, and shows a crash or a hang for what it is.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import deltaconvert
from deltaconvert import files
from deltaconvert.checking.dense import StoredModel
from deltaconvert.checkpoints import apply_state_dict, read_checkpoint
from deltaconvert.errors import DeltaConvertError
from deltaconvert.files import container
from deltaconvert.graph_json import allowed
from deltaconvert.operators import registry

ROOT = Path(__file__).resolve().parents[1]
HANG_S = 60
BATCH = 400  # cases a worker process
ALLOWANCE_BYTES = 1 << 30  # of address space, over what the imports took
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen",
             "socket.connect", "shutil.rmtree", "os.remove", "os.rename")


# --- what is mutated --------------------------------------------------------------------


def networks() -> list[nn.Module]:
    """Small models whose files differ in kind."""
    torch.manual_seed(0)
    return [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU()),
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(2), nn.Flatten(), nn.LazyLinear(2)),
        nn.Sequential(nn.ConvTranspose2d(3, 2, 2, 2), nn.Hardswish(), nn.GroupNorm(1, 2)),
    ]


class Corpus:
    """Good files, in memory."""

    def __init__(self, folder: Path) -> None:
        self.deltas: list[bytes] = []
        self.checkpoints: list[tuple[str, bytes]] = []
        for number, model in enumerate(networks()):
            model(torch.zeros(1, 3, 8, 8))  # lazy layers learn their sizes
            path = folder / f"{number}.delta"
            files.save(deltaconvert.convert(model.eval(), backend="reference"), path)
            self.deltas.append(path.read_bytes())
        state = networks()[0].state_dict()
        for content in (state, {"model": state, "args": argparse.Namespace(lr=1), "epoch": 3}):
            for zipped in (True, False):
                written = io.BytesIO()
                torch.save(content, written, _use_new_zipfile_serialization=zipped)
                self.checkpoints.append((".pth", written.getvalue()))
        from safetensors.torch import save

        self.checkpoints.append((".safetensors", save(dict(state))))


# --- mutations --------------------------------------------------------------------------


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, repeat and overwrite a few places."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(changed) or 1)
        size = rng.choice([1, 2, 4, 8, 16, 64])
        kind = rng.randrange(6)
        if kind == 0:
            changed[place:place + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del changed[place:place + size]
        elif kind == 2:
            changed[place:place] = changed[place:place + size]
        elif kind == 3:
            changed[place:place + size] = rng.choice([b"\0", b"\xff", b"\x7f"]) * size
        elif kind == 4:
            del changed[place:]
        else:
            other = rng.randrange(len(changed) or 1)
            changed[place:place + size] = changed[other:other + size]
    return bytes(changed)


def odd_value(rng: random.Random) -> Any:
    """Something that a description should not hold, in most places."""
    names = [*allowed.functions(), *allowed.methods(), *(o.name for o in registry.all_operators())]
    return rng.choice([
        None, True, -1, 0, 1, 2**31, 2**62, 10**30, 1e308, -0.0, "", "x", "os.system",
        "__class__", "torch.load", "eval", "\n", "input", [], {}, [[]], {"node": "x"},
        {"tuple": []}, {"float": "nan"}, {"dtype": "float64"}, {"device": "cuda"},
        {"slice": [None, None, 0]}, {"size": [2**40]}, rng.choice(names), rng.choice(names),
        "a" * 500, "é", "lambda", [1] * 200, {"dict": {"a": 1}}, {"ellipsis": None}])


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container and key within some JSON."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        part = waiting.pop()
        keys = list(part) if isinstance(part, dict) else range(len(part))
        for key in keys:
            found.append((part, key))
            if isinstance(part[key], (dict, list)):
                waiting.append(part[key])
    return found


def mutated_json(value: Any, rng: random.Random) -> Any:
    """Change, remove, copy and swap a few values."""
    changed = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        everywhere = places(changed)
        if not everywhere:
            return changed
        part, key = rng.choice(everywhere)
        kind = rng.randrange(5)
        if kind == 0:
            part[key] = odd_value(rng)
        elif kind == 1:
            del part[key]
        elif kind == 2 and isinstance(part, list):
            part.insert(rng.randrange(len(part) + 1), copy.deepcopy(part[key]))
        elif kind == 3 and isinstance(part, dict):
            part[rng.choice(["target", "op", "args", "kwargs", "name", "x"])] = odd_value(rng)
        else:
            other, where = rng.choice(everywhere)
            with contextlib.suppress(KeyError, IndexError):  # it may be gone by now
                part[key] = copy.deepcopy(other[where])
    return changed


def generated_graph(rng: random.Random) -> list[dict[str, Any]]:
    """Write a graph of calls that files may name, with arguments of every kind."""
    records: list[dict[str, Any]] = [{"name": "x", "op": "input", "target": "x"}]
    tables = {"function": list(allowed.functions()), "method": list(allowed.methods()),
              "operator": [o.name for o in registry.all_operators()]}
    for number in range(rng.randint(1, 6)):
        op = rng.choice(list(tables))
        nodes = [{"node": r["name"]} for r in records]
        args = [rng.choice(nodes), *(rng.choice([*nodes, odd_value(rng), rng.randint(-2, 9)])
                                     for _ in range(rng.randint(0, 3)))]
        kwargs = {rng.choice(["dim", "padding", "stride", "groups", "p"]): odd_value(rng)
                  for _ in range(rng.randint(0, 2))}
        records.append({"name": f"n{number}", "op": op, "target": rng.choice(tables[op]),
                        "args": args, "kwargs": kwargs})
    return [*records, {"op": "output", "args": [[{"node": records[-1]["name"]}]]}]


# --- cases ------------------------------------------------------------------------------


def delta_bytes(corpus: Corpus, rng: random.Random) -> tuple[str, bytes]:
    """A file whose bytes were changed; its checksum does not fit."""
    return ".delta", mutated_bytes(rng.choice(corpus.deltas), rng)


def delta_header(corpus: Corpus, rng: random.Random) -> tuple[str, bytes]:
    """A file whose header was changed: offsets, shapes, dtypes, the description as text."""
    data = rng.choice(corpus.deltas)
    size = int.from_bytes(data[:8], "little")
    header = mutated_json(json.loads(data[8:8 + size]), rng)
    text = json.dumps(header).encode()
    return ".delta", len(text).to_bytes(8, "little") + text + data[8 + size:]


def delta_description(corpus: Corpus, rng: random.Random) -> tuple[str, bytes]:
    """A file whose description was changed, with the checksum that fits."""
    model, tensors = container.unpack(rng.choice(corpus.deltas), "m")
    return ".delta", container.pack(mutated_json(model, rng), tensors)


def delta_graph(corpus: Corpus, rng: random.Random) -> tuple[str, bytes]:
    """A file with a graph that was made up, with the checksum that fits."""
    model, tensors = container.unpack(rng.choice(corpus.deltas), "m")
    return ".delta", container.pack({**model, "graph": generated_graph(rng), "outputs": 0}, tensors)


def checkpoint_bytes(corpus: Corpus, rng: random.Random) -> tuple[str, bytes]:
    """A checkpoint whose bytes were changed."""
    suffix, data = rng.choice(corpus.checkpoints)
    return suffix, mutated_bytes(data, rng)


def checkpoint_pickle(corpus: Corpus, rng: random.Random) -> tuple[str, bytes]:
    """A checkpoint in whose zip file the pickle was changed, and the checksums fit."""
    suffix, data = rng.choice([c for c in corpus.checkpoints if c[1][:2] == b"PK"])
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(written, "w") as new:
        for entry in old.namelist():
            content = old.read(entry)
            changes = entry.endswith("data.pkl")
            new.writestr(entry, mutated_bytes(content, rng) if changes else content)
    return suffix, written.getvalue()


CASES: tuple[Callable[[Corpus, random.Random], tuple[str, bytes]], ...] = (
    delta_bytes, delta_header, delta_description, delta_graph, checkpoint_bytes, checkpoint_pickle)


def read(path: Path) -> str:
    """Read a file as users do; say how that ended.

    Raises:
        Exception: anything but a `DeltaConvertError` is a finding.
    """
    try:
        if path.suffix == ".delta":
            with contextlib.suppress(DeltaConvertError):
                files.read_header(path)
            return run_once(files.load(path))
        else:
            model = networks()[0]
            apply_state_dict(model, read_checkpoint(path).state)
    except DeltaConvertError as error:
        return type(error).__name__ if str(error) else "an error without a text"
    return "read"


def run_once(delta: deltaconvert.DeltaModule) -> str:
    """Run a frame; a function that fails in the dense graph too is nobody's fault but its own."""
    frame = torch.zeros(1, 3, 8, 8)
    try:
        delta(frame)
    except DeltaConvertError:
        raise
    except Exception:
        try:
            StoredModel(delta)(frame)
        except Exception as error:
            return f"fails as dense does, {type(error).__name__}"
        raise
    return "read and run"


# --- running them -----------------------------------------------------------------------


class Watch:
    """Refuses, by Python's audit hook, what no case may do while it is read."""

    def __init__(self) -> None:
        self.path: Path | None = None
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.path is None:
            return
        writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wxa+")
        if writes or event.startswith(FORBIDDEN):
            raise AssertionError(f"the case did {event} {args!r:.200}")


def run_case(seed: int, corpus: Corpus, folder: Path, watch: Watch | None) -> str:
    """Make and read the case of a seed."""
    rng = random.Random(seed)
    case = CASES[seed % len(CASES)]
    suffix, data = case(corpus, rng)
    path = folder / f"case{suffix}"
    path.write_bytes(data)
    if watch is not None:
        watch.path = path
    # Of the processor's time: a machine may stop everything to measure. It ends a hang in Python;
    # the parent ends any other.
    signal.setitimer(signal.ITIMER_PROF, HANG_S)
    try:
        return f"{case.__name__}: {read(path)}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        if watch is not None:
            watch.path = None


def work(first: int, last: int) -> None:
    """Run cases in this process, with limits; a line of standard output for each."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = Corpus(folder)
        for seed in range(len(CASES)):  # what is imported late is imported now
            with contextlib.suppress(Exception):
                run_case(seed, corpus, folder, None)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ALLOWANCE_BYTES,) * 2)
        watch = Watch()
        for seed in range(first, last):
            print(seed, run_case(seed, corpus, folder, watch), flush=True)


def run(first: int, cases: int | None, seconds: float) -> tuple[int, dict[str, int], list[str]]:
    """Run cases in worker processes, until there are enough or the time is over.

    Returns:
        How many, how each kind ended, and what was found: seeds and reasons.
    """
    begin, done, ended, found = time.monotonic(), 0, dict[str, int](), list[str]()
    while time.monotonic() - begin < seconds and (cases is None or done < cases):
        number = BATCH if cases is None else min(BATCH, cases - done)
        lines, reason = run_worker(first + done, first + done + number)
        for line in lines:
            kind = line.partition(" ")[2]
            ended[kind] = ended.get(kind, 0) + 1
        done += len(lines)
        if reason:
            found.append(f"seed {first + done}: {reason}")
            done += 1
    return done, ended, found


def run_worker(first: int, last: int) -> tuple[list[str], str]:
    """Run cases in one worker; return its lines, and why it ended early, if it did."""
    command = [sys.executable, "-m", "tests.fuzzing", "--worker", str(first), str(last)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        out, err = process.communicate(timeout=60 + (last - first) * HANG_S / 10)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        err += "\nit hung"
    reason = "" if process.returncode == 0 else (
        f"exit code {process.returncode}: " + " | ".join(err.strip().splitlines()[-3:]))
    return out.splitlines(), reason


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--first", type=int, default=0, help="seed of the first case")
    parser.add_argument("--cases", type=int, help="how many; default: as many as there is time")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--worker", type=int, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(*given.worker)
        return
    done, ended, found = run(given.first, given.cases, given.seconds)
    for kind, number in sorted(ended.items()):
        print(f"{number:8}  {kind}")
    print(f"{done} cases, {len(found)} findings")
    print("\n".join(found))
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
