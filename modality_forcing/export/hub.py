"""Exports on the Hugging Face hub: a folder is sent to a repository of models."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from modality_forcing import paths
from modality_forcing.errors import UserError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")
_REPO = re.compile(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}")
_MAIN = "main"
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"
_NETWORK = "check the network and the name"
_HINTS = {  # by the status of an answer
    401: _LOG_IN,
    403: _LOG_IN,
    404: "check the names, and that the account may see the repository",
    409: "choose another name",
    429: "wait, and push again",
}


@dataclass(frozen=True)
class Repository:
    """A repository of models on the hub. revision: the branch, made if new; "" for the main one."""

    name: str
    private: bool = False
    revision: str = ""

    def check(self, out: Path) -> None:
        """Raises UserError, before anything is exported, if `out` could not be sent there.

        Checks the login; creates nothing.
        """
        if not _REPO.fullmatch(self.name):
            raise UserError(f"--push-to-hub is {self.name!r}", hint="write OWNER/NAME")
        if paths.is_address(out):
            hint = "name an --out on a disk, whose files are sent"
            raise UserError("--push-to-hub reads no bucket", where=out, hint=hint)
        self._call("reached", _client().whoami)

    def push(self, folder: Path) -> str:
        """Sends the files of a folder as one commit and returns the address of the repository.

        Creates the repository if it does not exist; an existing one keeps its other files, and
        whether it is private.
        Raises UserError if that fails. The folder stays as it is.
        """
        api = _client()
        later = f"; the export is complete: `hf upload {self.name} {folder}` sends it"
        made = self._call(
            "created",
            # None: as the settings of the owner say.
            lambda: api.create_repo(self.name, private=self.private or None, exist_ok=True),
            later=later,
        )
        branch = self.revision or _MAIN
        if branch != _MAIN:
            self._call(
                f"given the branch {branch}",
                lambda: api.create_branch(self.name, branch=branch, exist_ok=True),
                later=later,
            )
        self._call(
            "written",
            lambda: api.upload_folder(
                repo_id=self.name,
                folder_path=folder,
                revision=branch,
                commit_message="Upload an export of modality_forcing",
            ),
            later=later,
        )
        return str(made) if branch == _MAIN else f"{made}/tree/{branch}"

    def _call(self, done: str, call: Callable[[], T], *, later: str = "") -> T:
        """Returns what a call of the client does; its many kinds of errors become a UserError."""
        try:
            return call()
        except Exception as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            said = re.split(r"\n|\. ", str(error).strip(), maxsplit=1)[0]
            reason = said or type(error).__name__
            no_token = type(error).__name__ == "LocalTokenNotFoundError"
            hint = _LOG_IN if no_token else _HINTS.get(status or 0, _NETWORK)
            what = f"cannot be {done} on the hub ({reason[:200]})"
            raise UserError(what, where=self.name, hint=f"{hint}{later}") from error


def _client() -> HfApi:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        hint = "pip install 'modality_forcing[encoders]'"
        raise UserError("--push-to-hub needs the package huggingface_hub", hint=hint) from error
    return HfApi()
