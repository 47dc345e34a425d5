"""Long work says where it is: now and then, and only to those who are to hear."""

from __future__ import annotations

import pytest
from paceline.training.bar import LINE_EVERY_S, Bar
from paceline.training.capture.meter import Meter
from paceline.training.progress import Display
from paceline.training.trainer import Report

EVERY_TIME = -1.0


def test_a_log_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    shown = Bar(total=100, clock=lambda: now)
    shown.start()
    for done in range(100):
        now = done * LINE_EVERY_S / 20
        shown.show(done, "beside the bar", lambda done=done: f"[{done}] of 100 :+1:")  # type: ignore[misc]
    shown.stop()
    assert capsys.readouterr().err.splitlines() == [f"[{done}] of 100 :+1:" for done in (21, 42, 63, 84)]


def test_a_run_of_several_processes_speaks_once(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(step=1, progress=0.5, seconds_left=60, loss=2.0, rate=1e-3, rows=10, hits=[0.5], overlaps=[0.4])
    for quiet in (False, True):
        display = Display(quiet=quiet)
        display.say("counting")
        display.step(report)
        display.close()
    assert capsys.readouterr().err == "counting\n"


def test_a_step_and_a_count_tell_what_is_done_and_left(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(line_every_s=EVERY_TIME)
    report = Report(step=3, progress=0.25, seconds_left=90, loss=2.0, rate=1e-3, rows=10, hits=[0.5, 0.25], overlaps=[])
    display.step(report)
    assert capsys.readouterr().err == " 25.0% step 3  loss 2.000  accepts 0.50 0.25  0 tokens/s  00:01:30 left\n"
    with Meter("states", 4, done=1, line_every_s=EVERY_TIME) as meter:
        meter.add(done=1, tokens=5)
        meter.add(done=2, tokens=7)
    lines = capsys.readouterr().err.splitlines()
    told = [line.partition(" tokens")[0] for line in lines]
    assert told == ["states: 2 of 4, 5", "states: 4 of 4, 12", "states: 4 of 4, 12"]
    assert lines[0].endswith("min left")
    assert not lines[-1].endswith("left")
