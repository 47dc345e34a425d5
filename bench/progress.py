"""Progress of long work on standard error, for people: nothing where nobody watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

Step = Callable[[], None]


@contextmanager
def progress(label: str, total: int) -> Iterator[Step]:
    """A bar while the block runs; call what it yields once for each of ``total`` things done."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)
