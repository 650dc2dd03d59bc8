"""Rows of metrics in Weights & Biases, for runs with `--log=wandb` (extra `wandb`)."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from modality_forcing import paths
from modality_forcing.errors import UserError
from modality_forcing.mirror import Mirror
from modality_forcing.text_io import read_object

_FILE = "wandb.json"  # in the workdir: the run that the rows go to


class WandbLog:
    """One run of Weights & Biases for one workdir, whatever processes train it.

    Its project, entity and mode are those of WANDB_PROJECT (by default modality_forcing),
    WANDB_ENTITY and WANDB_MODE. A resumed run continues the same one. Rows that it already has,
    of steps that are done again, are not sent twice: they are equal.

    Raises UserError if wandb is not installed or the run cannot be opened.
    """

    def __init__(self, workdir: Path, name: str, config: Mapping[str, object]):
        try:
            import wandb
            from wandb.errors import Error
        except ImportError as error:
            hint = 'pip install "modality_forcing[wandb]"'
            raise UserError("--log=wandb needs wandb", hint=hint) from error
        path = workdir / _FILE
        if paths.exists(path):
            hint = "delete it to log to a new run"
            run_id = read_object(path, what="names no run of wandb", hint=hint).get("id")
            if not isinstance(run_id, str) or not run_id.isalnum():
                raise UserError("names no run of wandb", where=path, hint=hint)
            _await_new_folder(workdir, run_id)
        else:
            run_id = secrets.token_hex(4)
        settings: dict[str, object] = {"console": "off", "silent": True}
        self._mirror = Mirror(workdir)
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or "modality_forcing",
                id=run_id,
                resume="allow",
                name=name,
                dir=str(self._mirror.local),
                config=dict(config),
                settings=wandb.Settings(**settings),  # pyright: ignore[reportArgumentType]
            )
        except (Error, OSError) as error:
            self._mirror.discard()
            what = f"the run cannot be opened ({' '.join(str(error).split())[:200]})"
            hint = "log in with `wandb login`, set WANDB_MODE=offline, or leave --log out"
            raise UserError(what, where="--log=wandb", hint=hint) from error
        if not paths.exists(path):
            paths.write_file(path, json.dumps({"id": run_id}))
        self._in_bucket = paths.is_address(workdir)
        self._image, self._end_service = wandb.Image, wandb.teardown
        self._next = self._run.step  # 0, or after the last row of a resumed run

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds the scalars of one step to the run."""
        self._log(step, dict(scalars))

    def write_image(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds an image u8 [h w 3] to the run."""
        self._log(step, {name: self._image(image)})

    def close(self) -> None:
        """Sends what is left and ends the connection; the run can be resumed.

        The files of an offline run are uploaded to a workdir in a bucket.
        """
        self._run.finish()
        if self._in_bucket:
            self._end_service()  # it writes files a little later
            if self._run.offline:
                self._mirror.upload()
            self._mirror.discard()

    def _log(self, step: int, values: dict[str, object]) -> None:
        if step >= self._next:
            self._run.log(values, step=step)


def _await_new_folder(workdir: Path, run_id: str) -> None:
    """Waits while wandb would name its folder as that of an earlier process, and replace its rows.

    The name has the local time to the second.
    """
    file = f"run-{run_id}.wandb"
    while any(
        paths.exists(workdir / "wandb" / time.strftime(f"{kind}-%Y%m%d_%H%M%S-{run_id}") / file)
        for kind in ("run", "offline-run")
    ):
        time.sleep(0.05)
