"""The cause of an error is found in whatever a library made of it."""

from __future__ import annotations

import errno

from modality_forcing import system_errors


def test_cause_is_found_below_other_errors():
    wrapped = RuntimeError("save failed")
    wrapped.__cause__ = ValueError("x")
    wrapped.__cause__.__cause__ = OSError(errno.EMFILE, "Too many open files")
    assert system_errors.cause(wrapped) == errno.EMFILE
    assert (
        system_errors.cause(ValueError("[OS error 24: Too many open files] of x")) == errno.EMFILE
    )
    full = RuntimeError("RESOURCE_EXHAUSTED: cannot write: No space left on device [os_error='28']")
    assert system_errors.cause(full) == errno.ENOSPC and system_errors.is_environment_error(full)
    assert system_errors.cause(ValueError("a bug")) is None
    assert not system_errors.is_environment_error(FileNotFoundError(2, "No such file or directory"))
    line = str(system_errors.os_error(wrapped, "file", "read"))
    assert line == "file: cannot be read (Too many open files); allow more open files (ulimit -n)"
