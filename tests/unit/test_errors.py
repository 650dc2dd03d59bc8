"""UserError says where, what and a hint, always in one line."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.errors import UserError, WorkerDied

TEXT = st.text(min_size=1)


def test_message_has_the_problem():
    assert str(UserError("no such config")) == "no such config"


def test_message_has_place_problem_and_hint():
    error = UserError(
        "unknown key 'stpes'", where=Path("configs/demo.py"), hint="did you mean 'steps'?"
    )
    assert str(error) == "configs/demo.py: unknown key 'stpes'; did you mean 'steps'?"


def test_falsy_where_counts():
    assert str(UserError("not a picture", where=0)) == "0: not a picture"


def test_lines_of_a_nested_message_become_one():
    assert str(
        UserError("cannot read\n  the file:\tgone", where="a.png", hint="give\nanother")
    ) == ("a.png: cannot read the file: gone; give another")


@given(what=TEXT, where=TEXT, hint=st.text())
def test_message_is_one_line_with_every_word(what: str, where: str, hint: str):
    message = str(UserError(what, where=where, hint=hint))
    assert len(message.splitlines()) <= 1
    for part in (what, hint):
        assert " ".join(part.split()) in message


def test_user_error_is_not_a_builtin_error():
    with pytest.raises(UserError, match=r"^what$"):
        raise UserError("what")
    assert not issubclass(UserError, ValueError | OSError | KeyError)


def test_worker_that_ended_by_itself_is_not_said_to_lack_memory():
    # Such as of a script without `if __name__ == "__main__":`, whose copy refuses to start others.
    ended = "it ended with exit code 1; its own error is printed above"
    assert str(WorkerDied("it", 1, hint="give more memory")) == ended


def test_death_of_a_worker_names_signal_cause_and_way_out():
    killed = WorkerDied("loader process 1 of 2", -signal.SIGKILL, hint="give more memory")
    memory = "was killed by SIGKILL, as the system does when memory runs out"
    assert (
        str(killed) == f"loader process 1 of 2 {memory}; give more memory; the same command resumes"
    )
    assert (killed.exit_code, UserError("x").exit_code) == (1, 2)
    for code, text in ((3, "ended with exit code 3"), (-99, "killed by signal 99"), (-7, "SIGBUS")):
        assert text in str(WorkerDied("it", code, hint=""))
