"""How errors reach the person at the terminal: one line (a log's tail below it if there is one) and an exit code."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import click
from paceline_client import InvalidRequestError, UnavailableError
from paceline_client import PacelineError as ClientError

from paceline.runtime.child import StartFailed
from paceline.speculation.errors import InvalidRequest, PacelineError

P = ParamSpec("P")
T = TypeVar("T")

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130


class Failure(click.ClickException):
    """Ends the program with a message: something did not work."""

    exit_code = FAILED


class BadInput(click.ClickException):
    """Ends the program with a message: what was asked for is wrong."""

    exit_code = BAD_INPUT


def told(command: Callable[P, T]) -> Callable[P, T]:
    """Tell the errors a person can act on; whatever else escapes is a bug."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except (InvalidRequest, InvalidRequestError) as error:
            raise BadInput(str(error)) from error
        except StartFailed as error:
            raise (BadInput if error.returncode == BAD_INPUT else Failure)(str(error)) from error
        except UnavailableError as error:
            raise Failure(f"{error}; is a cluster running there? `paceline up` starts one") from error
        except (PacelineError, ClientError) as error:
            raise Failure(str(error)) from error
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except BrokenPipeError:
            raise  # click ends quietly when a reader such as head went away
        except OSError as error:
            raise Failure(str(error)) from error

    return run
