"""The default text encoder: words hashed to rows of a small learned table, so any language and no vocabulary file."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from modality_forcing.errors import UserError

# Scripts written without spaces, as first and last code point of their blocks: there a letter is the unit, since a
# whole sentence would else be one never repeated word. Thai, Lao; Myanmar; Khmer; kana and bopomofo; Han and its kin.
_UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3005, 0x3007),
    (0x3040, 0x312F),
)
_UNSPACED += (
    (0x31A0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
_PLAIN = re.compile("[a-z0-9]+")
_APOSTROPHES = frozenset("'\u2019\u02bc")  # "don't" is one word, whichever way it was typed
# Which of many equally good hashes. Under this one no two words of the embedded world's captions share a row of 2048;
# under the plain one "egg" and "box" do. Part of what a checkpoint's table means: never change it.
_PERSON = b"caption"


@dataclass(frozen=True)
class Words:
    """Encodes a caption as the hashes of its first words.

    tokens: l, the number of words kept. vocabulary: the number of rows that words are hashed to; of w different words
    about w^2 / (2 vocabulary) pairs share one. Raises UserError if either is not positive.
    """

    tokens: int = 12
    vocabulary: int = 2048

    def __post_init__(self) -> None:
        for name in ("tokens", "vocabulary"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"text {name} is {getattr(self, name)}", hint="it must be at least 1"
                )

    def encode(self, caption: str) -> dict[str, np.ndarray]:
        """Returns {"tokens": i32 [l] in [0, vocabulary), "mask": bool [l]}; padding is 0, further words are dropped."""
        ids = [self.row(word) for word, _ in zip(words(caption), range(self.tokens), strict=False)]
        tokens = np.zeros(self.tokens, np.int32)
        tokens[: len(ids)] = ids
        return {"tokens": tokens, "mask": np.arange(self.tokens) < len(ids)}

    def null(self) -> dict[str, np.ndarray]:
        """Returns the encoding of the empty caption: no real token."""
        return self.encode("")

    def row(self, word: str) -> int:
        """Returns the table row of one word as `words` yields it: the same on every machine and in every process."""
        # Not hash(): Python salts that anew in every process, so loader workers would disagree with each other.
        digest = blake2b(
            word.encode("utf-8", "surrogatepass"), digest_size=8, person=_PERSON
        ).digest()
        return int.from_bytes(digest, "little") % self.vocabulary


def words(caption: str) -> Iterator[str]:
    """Yields a caption's words, case, punctuation and Unicode form aside; unspaced scripts letter by letter."""
    if caption.isascii():  # the same, in a fifth of the time
        yield from _PLAIN.findall(caption.replace("'", "").lower())
        return
    word = ""
    for letter in _normal(caption):
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


def _normal(caption: str) -> str:
    # Folding case can leave a decomposed form behind, hence normalising before and after.
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", caption).casefold())


def _unspaced(letter: str) -> bool:
    code = ord(letter)
    return code >= 0x0E00 and any(first <= code <= last for first, last in _UNSPACED)
