"""Profiles: the window of steps, and a file that jax can read back."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.profiler import ProfileData

from modality_forcing import paths
from modality_forcing.errors import UserError
from modality_forcing.train.profile import Profiler, ProfileWindow, parse_window


def test_window_is_parsed():
    assert parse_window("10:3") == ProfileWindow(10, 3)
    assert parse_window("0:1:all") == ProfileWindow(0, 1, all_processes=True)


@pytest.mark.parametrize("text", ["", "10", "10:", ":3", "10:0", "-1:2", "1:2:", "1:2:3", "1:٣"])
def test_other_windows_are_refused(text):
    with pytest.raises(UserError, match=r"--profile: .* is not a window of steps; give FROM:COUNT"):
        parse_window(text)


# Python 3.12 warns of a type of jax, which dies of warnings that are errors.
@pytest.mark.filterwarnings("ignore:builtin type event_stats:DeprecationWarning")
def test_profile_holds_the_steps_of_the_window(tmp_path, capfd):
    profiler, step = Profiler(ProfileWindow(2, 2), tmp_path), jax.jit(lambda x: x + 1)
    x = jnp.zeros(3)
    for k in range(6):
        profiler.before_step(k, x)
        with jax.profiler.StepTraceAnnotation("step", step_num=k):
            x = step(x)
    profiler.close(x)
    (path,) = tmp_path.rglob("*.xplane.pb")
    assert path.is_relative_to(tmp_path / "profile")
    steps = {
        dict(event.stats)["step_num"]
        for plane in ProfileData.from_file(str(path)).planes
        for line in plane.lines
        for event in line.events
        if event.name == "step"
    }
    assert steps == {2, 3}
    assert capfd.readouterr().err == f"--profile: written to {tmp_path / 'profile'}\n"


def test_profile_of_a_run_in_a_bucket_is_uploaded(gs_path, bucket, capfd):
    profiler = Profiler(ProfileWindow(0, 1), gs_path)
    profiler.before_step(0, ())
    assert profiler._mirror is not None
    local = profiler._mirror.local
    profiler.before_step(1, jax.jit(lambda x: x + 1)(jnp.zeros(3)))
    (path,) = (p for p in bucket.below(gs_path) if p.name.endswith(".xplane.pb"))
    assert str(path).startswith(f"{gs_path}/profile/") and not local.exists()
    assert list(ProfileData.from_serialized_xspace(paths.read_bytes(path)).planes)
    assert capfd.readouterr().err == f"--profile: written to {gs_path / 'profile'}\n"


def test_window_that_a_resumed_run_is_past_is_one_line(tmp_path, capfd):
    profiler = Profiler(ProfileWindow(2, 2), tmp_path)
    for k in (5, 6):
        profiler.before_step(k, ())
    assert capfd.readouterr().err == "--profile: step 2 is past; this run is at step 5\n"
    assert not list(tmp_path.iterdir())


def test_profile_that_cannot_be_written_does_not_end_the_run(tmp_path, capfd, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("no space left\non device")

    monkeypatch.setattr(jax.profiler, "start_trace", fail)
    profiler = Profiler(ProfileWindow(0, 1), tmp_path)
    for k in range(3):
        profiler.before_step(k, ())
    profiler.close()
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "no profile (no space left on device)" in said


def test_window_that_was_never_reached_is_one_line(tmp_path, capfd):
    profiler = Profiler(ProfileWindow(500, 2), tmp_path)
    profiler.before_step(5, ())
    profiler.close()
    assert capfd.readouterr().err == "--profile: step 500 was not run; no profile\n"
    assert not list(tmp_path.iterdir())
