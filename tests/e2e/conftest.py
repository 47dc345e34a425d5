"""The clusters that tests which kill nothing share, and a voice that is heard without -s."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator

import pytest
from paceline.runtime.cluster import ClusterSpec

from tests.e2e.collector import Collecting
from tests.e2e.hosting import KILLABLE, Hosted, hosting
from tests.e2e.programs import PACELINE

FAKE = "fake:step_ms=5,eos=0"
PATIENT = "router.draft_deadline_ms=5000"  # drafts are to be lost by a kill, not by a busy machine
MAX_SESSIONS = 4
MAX_WAITING = 1


@pytest.fixture(scope="session")
def demo_model() -> str:
    """The demo model, fetched."""
    done = subprocess.run(
        [PACELINE, "models", "fetch", "demo"], check=False, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    return "demo"


@pytest.fixture(scope="package")
def demo_cluster(demo_model: str) -> Iterator[Hosted]:
    """Two of everything with the demo model. Who kills a part of it waits until it is whole again."""
    two = ClusterSpec(
        drafts=2, targets=2, routers=2, model=demo_model, threads=1, restart=KILLABLE, settings=(PATIENT,)
    )
    with hosting(two) as hosted:
        yield hosted


@pytest.fixture(scope="package")
def collecting() -> Iterator[Collecting]:
    """A collector of spans."""
    with Collecting() as collector:
        yield collector


@pytest.fixture(scope="package")
def fake_cluster(collecting: Collecting) -> Iterator[Hosted]:
    """One of everything with a model that is a table (5 ms a step), few places, and telemetry."""
    endpoint = [f"{service}.telemetry.otlp_endpoint={collecting.endpoint}" for service in ("router", "target", "draft")]
    settings = (*endpoint, f"router.max_sessions={MAX_SESSIONS}", f"router.max_waiting={MAX_WAITING}")
    with hosting(ClusterSpec(model=FAKE, draft_model="fake:quality=0.8,eos=0", settings=settings)) as hosted:
        yield hosted


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print a measured figure so that every run shows it."""

    def say(line: str) -> None:
        with capsys.disabled():
            print(f"\n  {line}", flush=True)  # noqa: T201 - meant for the reader of `make test`

    return say
