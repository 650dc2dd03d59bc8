"""The progress meter, durations and text tables."""

from __future__ import annotations

import pytest

from modality_forcing import progress
from modality_forcing.progress import ProgressMeter, format_duration, format_table


def clock(monkeypatch, *times: float) -> None:
    remaining = iter(times)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(remaining))


def test_meter_reports_rate_and_remaining_time(capsys, monkeypatch):
    clock(monkeypatch, 0.0, 10.0)
    meter = ProgressMeter("forcing", 100)
    meter.report(20, loss=0.123456, wait="1.0%")
    meter.report(40, loss=0.1)
    meter.close()
    first, second = capsys.readouterr().err.splitlines()
    assert first == "forcing  20/100  loss 0.1235  wait 1.0%"
    assert second == "forcing  40/100  2/s  ETA 0:30  loss 0.1"


def test_meter_gives_no_rate_of_a_moment(monkeypatch):
    clock(monkeypatch, 0.0, 0.005, 10.0)
    lines: list[str] = []
    meter = ProgressMeter("photos", 60_001, write=lines.append)
    for done in (1, 11, 50_001):
        meter.report(done)
    assert lines[1] == "photos  11/60001"
    assert lines[2] == "photos  50001/60001  5,000/s  ETA 0:02"


def test_meter_skips_updates_within_the_interval(monkeypatch):
    clock(monkeypatch, 0.0, 4.0, 10.0, 10.0)
    lines: list[str] = []
    meter = ProgressMeter("scenes", 4, every=10.0, write=lines.append)
    for done in (1, 2, 3):
        meter.update(done)
    assert [line.split()[1] for line in lines] == ["1/4", "3/4"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0:00"), (59.6, "1:00"), (125.0, "2:05"), (3 * 3600 + 62.0, "3:01:02")],
)
def test_duration_has_hours_only_when_needed(seconds, text):
    assert format_duration(seconds) == text


def test_last_cell_of_a_row_does_not_widen_its_column():
    rows = [("a", 1, "x"), ("bcd", "a long last cell")]
    assert format_table(rows, ("name", "n", "note")) == (
        "name  n  note\na     1  x\nbcd   a long last cell"
    )
