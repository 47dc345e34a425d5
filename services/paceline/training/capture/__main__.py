"""``python -m paceline.training.capture``, which is what ``paceline cache capture`` runs."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from paceline.runtime.command import EXIT_FAILED, EXIT_USAGE
from paceline.runtime.compute import wait_briefly
from paceline.speculation.errors import InvalidRequest, PacelineError
from paceline.training.capture import options

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 1 if it failed, 2 if it was asked something wrong, 130 if it was interrupted."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        asked = options.parse(arguments)
        wait_briefly()
        from paceline.training.capture.job import run  # noqa: PLC0415  # torch, which --help needs not

        run(asked, _say)
    except InvalidRequest as error:
        _say(str(error))
        return EXIT_USAGE
    except (PacelineError, OSError) as error:
        _say(str(error))
        return EXIT_FAILED
    except KeyboardInterrupt:
        _say("interrupted; nothing finished is lost, the same command goes on")
        return INTERRUPTED
    return 0


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _say(line: str) -> None:
    sys.stderr.write(f"paceline cache capture: {line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    raise SystemExit(main())
