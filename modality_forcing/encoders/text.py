"""The interface of a text encoder's host side: from captions to arrays of a batch."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class TextEncoder(Protocol):
    """Turns captions into arrays of one fixed shape, so that any captions stack into a batch.

    Implementations depend on the caption alone, and can be pickled: loader processes use them.
    """

    @property
    def tokens(self) -> int:
        """The number of text tokens l of every caption, padding included."""
        ...

    def encode(self, caption: str) -> dict[str, np.ndarray]:
        """Returns arrays with leading axis [l]; "mask", bool [l], is True for real tokens."""
        ...

    def null(self) -> dict[str, np.ndarray]:
        """Returns the encoding of "no caption", for text dropout and guidance."""
        ...


@runtime_checkable
class Tokenizer(TextEncoder, Protocol):
    """The host side of a frozen text encoder: "tokens" are ids, i32 [l]."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        ...
