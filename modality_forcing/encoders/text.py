"""The interface of a text encoder on the host: what a caption becomes in a batch, whoever embeds it later."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class TextEncoder(Protocol):
    """Turns captions into arrays of one fixed shape, so that any mix of captions stacks into a batch.

    Implementations depend on the caption alone and can be pickled, because loader processes encode captions.
    """

    @property
    def tokens(self) -> int:
        """The number of text tokens l of every caption, padding included."""
        ...

    def encode(self, caption: str) -> dict[str, np.ndarray]:
        """Returns the caption's arrays with leading axis [l], among them "mask": bool [l], true for real tokens."""
        ...

    def null(self) -> dict[str, np.ndarray]:
        """Returns what stands for "no caption", structured as by `encode` (for dropped captions and guidance)."""
        ...
