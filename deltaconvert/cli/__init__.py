"""The command line: one file a command, and what they share.

Typer and Rich are imported here and nowhere else in the package.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from deltaconvert.errors import UnsupportedError, missing_package


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line on ``sys.argv``, or on other arguments, and exit with its code."""
    try:
        from deltaconvert.cli.app import app

        app(args=None if arguments is None else list(arguments), prog_name="deltaconvert")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except ModuleNotFoundError as error:  # of Typer; what a command needs is told by the command
        if not (missing := missing_package(error)):
            raise
        print(f"error: the command line needs {missing}", file=sys.stderr)
        sys.exit(UnsupportedError.exit_code)
