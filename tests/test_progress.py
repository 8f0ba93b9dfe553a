"""The bar of a run on a terminal, and the lines where there is none."""

import io
import time

import pytest
from rich.console import Console

from survey.progress import TerminalProgress
from survey.run.api import run
from survey.run.executor import InlineExecutor


def drawn(terminal, act):
    """What comes out of a progress on a terminal or a file."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120, color_system=None)
    with TerminalProgress(console) as progress:
        act(progress)
    return stream.getvalue()


def some_units(progress):
    """Six of eight units, two of them there already, one failed."""
    progress.start("oversampled", 8, 2)
    for i in range(4):
        time.sleep(0.05)
        progress.advance("oversampled", None, failed=i == 1)


def test_a_bar_shows_stage_units_rate_time_left_and_failures():
    last = [line for line in drawn(True, some_units).splitlines() if "oversampled" in line][-1]
    for words in ("oversampled", "━", "6/8", "1 failed"):
        assert words in last
    rate = float(last.split("/s")[0].split()[-1])
    assert 1 < rate <= 20, "units of this run a second; those that were there already do not count"
    left = last.split("/s")[1].split()[0]
    assert left in ("0:00:00", "0:00:01", "0:00:02"), last


def test_without_a_terminal_a_stage_is_a_line_when_it_ends():
    def act(progress):
        some_units(progress)
        progress.message("dashboard: http://127.0.0.1:8787/status")
        progress.start("detect", 4, 4)
        progress.advance("oversampled", None)
        progress.advance("oversampled", None)

    lines = drawn(False, act).splitlines()
    assert lines[0] == "dashboard: http://127.0.0.1:8787/status"
    assert lines[1] == "detect: all 4 there already"
    stage, _, took = lines[2].partition(": 8 in ")
    assert stage == "oversampled"
    assert took.endswith(" s, 1 failed")
    assert len(lines) == 3


@pytest.mark.parametrize("terminal", [True, False])
def test_a_run_tells_where_its_dashboard_is(finished, monkeypatch, terminal):
    monkeypatch.setattr(InlineExecutor, "dashboard", "http://127.0.0.1:8787/status")
    text = drawn(terminal, lambda progress: run(finished.path, client="synchronous", progress=progress))
    assert "dashboard: http://127.0.0.1:8787/status" in text
    assert "photometry" in text
