"""``deltaconvert run``: inference over clips, with timings, results and overlays."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from deltaconvert.atomic import write_text
from deltaconvert.cli.frames import dtype_of
from deltaconvert.cli.options import JsonFile, ReportFile, flags_of, settings_as_flags
from deltaconvert.cli.output import (
    STDOUT,
    check_writable,
    complain,
    say,
    shows_progress,
    write_json,
)
from deltaconvert.cli.pictures import CLIP_HELP, Pictures
from deltaconvert.clips import Clip
from deltaconvert.errors import InputError
from deltaconvert.files import load
from deltaconvert.model_specs import find_function
from deltaconvert.outputs import named_outputs
from deltaconvert.pages.runs import run_page
from deltaconvert.running.batches import Batch, Sources
from deltaconvert.running.overlay import OverlayVideo
from deltaconvert.running.recomputed import Recomputed
from deltaconvert.running.results import (
    LinesFile,
    NpzFile,
    fresh_folder,
    remove_if_empty,
    unique_names,
)
from deltaconvert.running.session import Done, Session
from deltaconvert.running.summary import ClipSummary

INTERRUPTED = 130
TOGETHER = ("streams", "lanes")
SAVED = ("npz", "none")

Postprocess = Callable[[Any], Any]


@settings_as_flags(only=("backend", "threads"))
@flags_of(Pictures, "pictures")
def run(
    converted: Annotated[Path, typer.Argument(metavar="OUT", help="A .delta file.")],
    source: Annotated[list[str], typer.Option(metavar="CLIP", help=f"{CLIP_HELP} Repeats.")],
    pictures: Pictures,
    config: dict[str, Any],
    together: Annotated[str, typer.Option(
        metavar="streams|lanes", help="Several clips: each a stream of its own, or lanes of "
        "one batch.")] = "streams",
    out: Annotated[Path, typer.Option(
        "--out", "-o", metavar="FOLDER", help="Where the results' numbered folder is made.")
    ] = Path("runs"),
    save: Annotated[str, typer.Option(
        metavar="npz|none", help="The outputs as arrays of all frames; none with --postprocess "
        "unless given.")] = "",
    postprocess: Annotated[str | None, typer.Option(
        metavar="MODULE:FUNCTION", help="Called with the outputs of each frame; what it "
        "returns becomes a JSON line, and its attribute `draw` draws on overlays.")] = None,
    overlay: Annotated[bool, typer.Option(
        "--overlay", help="Write a video of what was recomputed, and what was drawn.")] = False,
    dense_every: Annotated[int, typer.Option(
        min=0, metavar="N", help="Time the dense network on every N-th frame; 0 never.")] = 20,
    json: JsonFile = None,
    report: ReportFile = None,
) -> None:
    """Run a converted network over videos or pictures."""
    check_writable(report, json=json, read=[converted, *source])
    if out == STDOUT:
        raise InputError("--out -: results are files. Name a folder.")
    _check_choice("--together", together, TOGETHER)
    saved = save or ("none" if postprocess else "npz")
    _check_choice("--save", saved, SAVED)
    function = None if postprocess is None else find_function(postprocess)
    delta = load(converted)
    clips = pictures.open_all(source, delta.preprocessing)
    delta = delta.with_config(delta.config.replace(**config))
    preprocessing, dtype = pictures.preprocessing(delta.preprocessing), dtype_of(delta)
    sources = Sources(clips, lambda pixels: preprocessing(pixels, dtype))
    session = Session(delta, dense_every, Recomputed() if overlay else None)
    folder = fresh_folder(out)
    try:
        with ExitStack() as undo:
            writers = _writers(folder, clips, saved, function, overlay, undo)
            interrupted = _run_all(session, sources, together, writers)
            summaries = [
                ClipSummary(clip.name, clip.size, session.frames.get(index, 0), writer.finish(),
                            str(sources.broken.get(index, "")))
                for index, (clip, writer) in enumerate(zip(clips, writers, strict=True))]
            summary = session.summary(summaries, together, interrupted)
            data = {"converted": str(converted), "folder": str(folder),
                    "preprocessing": preprocessing.to_dict(), **summary.to_dict()}
            write_json(folder / "summary.json", data)
            undo.pop_all()
    finally:
        remove_if_empty(folder)
    said = f"{converted} on {', '.join(c.name for c in clips)}; {preprocessing}"
    say(f"{said}\n\n{summary}\n\nresults: {folder}: "
        + ", ".join([*(f for c in summaries for f in c.files), "summary.json"]))
    write_json(json, data)
    write_text(report, run_page(summary, said) if report else "")
    for error in sources.broken.values():
        complain(f"error: {error}")
    raise typer.Exit(INTERRUPTED if interrupted else 2 if sources.broken else 0)


def _check_choice(flag: str, given: str, choices: Sequence[str]) -> None:
    if given not in choices:
        raise InputError(f"{flag} {given!r}: choose one of {', '.join(choices)}.")


def _run_all(session: Session, sources: Sources, together: str,
             writers: Sequence[ClipWriter]) -> bool:
    """Run everything; whether Ctrl-C ended it."""
    batches = sources.as_lanes() if together == "lanes" else sources.as_streams()
    with closing(batches), _interruptible(session) as stopped, _progress(session, sources) as tick:
        for batch in _timed(batches, session):
            done = session.run(batch)
            session.timing(session.post_ms, functools.partial(_write, done, writers, session))
            session.finished(done)
            tick(done)
            if stopped():
                break
        return stopped()


def _write(done: Sequence[Done], writers: Sequence[ClipWriter], session: Session) -> None:
    for one in done:
        writers[one.picture.clip].add(one, session)


def _timed(batches: Iterator[Batch], session: Session) -> Iterator[Batch]:
    while True:
        batch = session.timing(session.waiting_ms, lambda: next(batches, None))
        if batch is None:
            return
        yield batch


@contextmanager
def _interruptible(session: Session) -> Iterator[Callable[[], bool]]:
    """Make the first Ctrl-C a wish that is asked for between frames; the second ends at once.

    So does the first where no frame is done yet: there is nothing to keep, and compiling what the
    first one needs may take a while.
    """
    wished = False

    def wish(number: int, frame: Any) -> None:
        nonlocal wished
        if wished or not session.ms:
            raise KeyboardInterrupt
        wished = True

    before = None
    with suppress(ValueError):  # not the main thread: Ctrl-C never comes here
        before = signal.signal(signal.SIGINT, wish)
    try:
        yield lambda: wished
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


@contextmanager
def _progress(session: Session, sources: Sources) -> Iterator[Callable[[Sequence[Done]], None]]:
    """A bar on a terminal: frames a second, ms a call, update ratio, time left."""
    if not shows_progress():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    lengths = [clip.length for clip in sources.clips]
    total = None if None in lengths else sum(n or 0 for n in lengths)
    columns = (TextColumn("{task.completed:.0f}/{task.total}"), BarColumn(),
               TextColumn("{task.speed:.1f} fps  {task.fields[ms]:.1f} ms  changed "
                          "{task.fields[ratio]:.1%}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, ms=0.0, ratio=0.0)

        def tick(done: Sequence[Done]) -> None:
            bar.update(task, advance=len(done), ms=session.ms[-1], ratio=session.ratios[-1])

        yield tick


class ClipWriter:
    """Everything that is written for one clip."""

    def __init__(self, base: Path, clip: Clip, saved: str, function: Postprocess | None,
                 overlay: bool) -> None:
        """Open what is wanted."""
        self.function = function
        self.npz = NpzFile(base.with_name(f"{base.name}.npz")) if saved == "npz" else None
        self.lines = None if function is None else LinesFile(base.with_name(f"{base.name}.jsonl"))
        self.video = OverlayVideo(base.with_name(f"{base.name}.overlay.mp4"), clip.fps,
                                  getattr(function, "draw", None)) if overlay else None

    def add(self, done: Done, session: Session) -> None:
        """Write one frame.

        Raises:
            InputError: the post-processing raised, or returned what cannot be written.
            WriteError: the disk is full.
        """
        result = None
        if self.function is not None and self.lines is not None:
            result = self._call(done)
            self.lines.add({"frame": done.picture.index, "ms": round(done.ms, 3),
                            "update_ratio": round(done.update_ratio, 6), "result": result})
        if self.video is not None and session.recomputed is not None:
            said = (f"frame {done.picture.index}  {done.ms:.1f} ms  changed "
                    f"{done.update_ratio:.1%}")
            self.video.add(done.picture.pixels, session.recomputed.by_scale(done.lane), said,
                           result)
        if self.npz is not None:
            self.npz.add(named_outputs(done.outputs))

    def _call(self, done: Done) -> Any:
        assert self.function is not None
        try:
            return self.function(done.outputs)
        except Exception as error:  # the user's code may raise anything
            raise InputError(
                f"--postprocess raised {type(error).__name__} for frame {done.picture.index}: "
                f"{error}. It is called with what the model returns for a batch of one.") from error

    def finish(self) -> list[str]:
        """Put the files in their places; return their names."""
        made = [part.finish() for part in self._parts()]
        return [path.name for path in made if path is not None]

    def discard(self) -> None:
        """Leave nothing behind."""
        for part in self._parts():
            part.discard()

    def _parts(self) -> list[Any]:
        return [part for part in (self.npz, self.lines, self.video) if part is not None]


def _writers(folder: Path, clips: Sequence[Clip], saved: str, function: Postprocess | None,
             overlay: bool, undo: ExitStack) -> list[ClipWriter]:
    """Open what is to be written for each clip; ``undo`` leaves nothing of it behind."""
    made = []
    for name, clip in zip(unique_names([clip.name for clip in clips]), clips, strict=True):
        made.append(ClipWriter(folder / name, clip, saved, function, overlay))
        undo.callback(made[-1].discard)
    return made
