"""The default text encoder: words hashed to rows of a small learned table, in any language."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice

import numpy as np

from modality_forcing.errors import UserError

# Scripts written without spaces, as first and last code point of their blocks. There each letter
# is a word, since a sentence would be one word that never occurs again. Thai, Lao; Myanmar; Khmer;
# kana and bopomofo; Han and its kin.
_UNSPACED = (
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3040, 0x312F)),
    *((0x31A0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)),
)
_PLAIN = re.compile("[a-z0-9]+")
_APOSTROPHES = frozenset("'\u2019\u02bc")  # "don't" is one word, whichever way it was typed
# Which of many equally good hashes. With this one no two words of the synthetic captions share a
# row of 2048; with the default "egg" and "box" do. Checkpoints depend on it: never change it.
_PERSON = b"caption"


@dataclass(frozen=True)
class HashedWordTokenizer:
    """Encodes a caption as the hashes of its first words.

    tokens: l, the number of words kept. vocab_size: the number of rows that words are hashed to;
    of w different words about w^2 / (2 vocab_size) pairs share one. Raises UserError if either is
    not positive.
    """

    tokens: int = 12
    vocab_size: int = 2048

    def __post_init__(self) -> None:
        for name in ("tokens", "vocab_size"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"text {name} is {value}", hint="it must be at least 1")

    def encode(self, caption: str) -> dict[str, np.ndarray]:
        """Returns {"tokens": i32 [l] in [0, vocab_size), "mask": bool [l]}; padding is 0."""
        ids = [self.row(word) for word in islice(words(caption), self.tokens)]
        tokens = np.zeros(self.tokens, np.int32)
        tokens[: len(ids)] = ids
        return {"tokens": tokens, "mask": np.arange(self.tokens) < len(ids)}

    def null(self) -> dict[str, np.ndarray]:
        """Returns the encoding of the empty caption: no real token."""
        return self.encode("")

    def row(self, word: str) -> int:
        """Returns the table row of one word from `words`: the same on every machine."""
        # Not hash(): Python salts it in every process, so loader processes would disagree.
        data = word.encode("utf-8", "surrogatepass")
        digest = blake2b(data, digest_size=8, person=_PERSON).digest()
        return int.from_bytes(digest, "little") % self.vocab_size


def words(caption: str) -> Iterator[str]:
    """Yields words, case, punctuation and Unicode form removed; unspaced scripts by letter."""
    if caption.isascii():  # the same result in a fifth of the time
        yield from _PLAIN.findall(caption.replace("'", "").lower())
        return
    word = ""
    for letter in _normalize(caption):
        kind = unicodedata.category(letter)[0]
        if kind == "M":  # a vowel sign or accent belongs to the letter before it
            word += letter if word else ""
        elif kind in "LN":
            if word and (_unspaced(letter) or _unspaced(word[0])):
                yield word
                word = ""
            word += letter
        elif letter not in _APOSTROPHES and word:
            yield word
            word = ""
    if word:
        yield word


def _normalize(caption: str) -> str:
    # Case folding can leave a decomposed form, hence the normalization before and after.
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", caption).casefold())


def _unspaced(letter: str) -> bool:
    code = ord(letter)
    return code >= 0x0E00 and any(first <= code <= last for first, last in _UNSPACED)
