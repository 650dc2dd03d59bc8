"""The folders of those who use a page: one for each, removed when they leave."""

from __future__ import annotations

import os
import secrets
import threading
from pathlib import Path

from modality_forcing import paths

KEPT = 6  # answers of a session whose files can still be downloaded
MAX_TOTAL = 4 * 2**30  # bytes of all files, uploads included


class Sessions:
    """Folders below one, of names that nobody can guess.

    root: exists, and is removed by who made it.
    """

    def __init__(self, root: Path, max_total: int = MAX_TOTAL):
        self.root, self.max_total = root, max_total
        self._answers: dict[str, list[Path]] = {}
        self._lock = threading.Lock()

    def new_folder(self, session: str) -> Path:
        """Returns an empty folder for one answer; the oldest of the session's is removed."""
        folder = paths.make_folder(self.root / "answers" / secrets.token_urlsafe(24))
        with self._lock:
            mine = self._answers.setdefault(session, [])
            mine.append(folder)
            old = [mine.pop(0) for _ in range(len(mine) - KEPT)]
        for path in old:
            paths.remove_tree(path)
        return folder

    def close(self, session: str) -> None:
        """Removes the folders of a session, if it has any."""
        with self._lock:
            folders = self._answers.pop(session, [])
        for folder in folders:
            paths.remove_tree(folder)

    def is_full(self) -> bool:
        """Returns whether the files of all sessions, and uploads, take more than `max_total`."""
        total = 0
        for folder, _, names in os.walk(self.root):
            for name in names:
                try:
                    total += paths.size(os.path.join(folder, name))
                except FileNotFoundError:  # removed in between
                    continue
        return total > self.max_total
