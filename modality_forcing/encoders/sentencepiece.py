"""Captions as the token ids of a SentencePiece model, such as T5's and UMT5's: the host's half of a frozen text encoder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from modality_forcing.errors import UserError

PAD, EOS, UNK = 0, 1, 2  # in every T5 and UMT5
_FILE = "spiece.model"


@dataclass(frozen=True)
class Sentences:
    """Encodes a caption as the ids of its pieces and an end, cut so that the end stays the last of at most l tokens.

    tokens: l. model: path of a SentencePiece model, or of the folder that holds it as `spiece.model`.

    Any white space counts as one space, as in the Wan pipeline: there transformers' tokenizers cut as SentencePiece does.
    They differ in two things. A letter that the model lacks is its bytes here, where the model has pieces for those, as
    it was trained; some of theirs make it unknown. And what looks like a control symbol (`</s>`) is text here.

    Raises UserError where there is no such model, or it is none of T5's kind. Pickled as its path; each process reads
    the model once.
    """

    tokens: int
    model: str

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise UserError(f"text tokens is {self.tokens}", hint="it must be at least 1")
        _processor(
            self.model
        )  # a wrong path is told here, not by a loader process in the first batch

    def encode(self, caption: str) -> dict[str, np.ndarray]:
        """Returns {"tokens": i32 [l], "mask": bool [l]}; the end is a real token, padding is 0."""
        text = " ".join(caption.split()).encode(
            "utf-8", "replace"
        )  # half a surrogate pair has no UTF-8
        ids = [*_processor(self.model).encode(text)[: self.tokens - 1], EOS]
        tokens = np.full(self.tokens, PAD, np.int32)
        tokens[: len(ids)] = ids
        return {"tokens": tokens, "mask": np.arange(self.tokens) < len(ids)}

    def null(self) -> dict[str, np.ndarray]:
        """Returns the encoding of the empty caption: the end alone."""
        return self.encode("")


@lru_cache(maxsize=4)
def _processor(model: str) -> Any:
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        hint = "pip install 'modality_forcing[encoders]'"
        raise UserError(
            "captions of a frozen text encoder need the package sentencepiece", hint=hint
        ) from error
    path = _file(Path(model))
    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(path.read_bytes())
        ids = processor.pad_id(), processor.eos_id(), processor.unk_id()
    except OSError as error:
        raise UserError(
            f"cannot be read ({error.strerror or error})", where=path, hint="check the path"
        ) from error
    except RuntimeError as error:
        raise UserError(
            "is no SentencePiece model, or truncated", where=path, hint="download it again"
        ) from error
    if ids != (PAD, EOS, UNK):
        what = "has its padding, end and unknown token at {}, {} and {}".format(*ids)
        raise UserError(
            what, where=path, hint=f"give a T5's or UMT5's model, with {PAD}, {EOS} and {UNK}"
        )
    return processor


def _file(path: Path) -> Path:
    if not path.exists():
        raise UserError(
            "no such file or folder", where=path, hint=f"give the {_FILE} of a text encoder"
        )
    if path.suffix == ".json" or (path.is_dir() and not (path / _FILE).exists()):
        has = "is a tokenizer.json" if path.is_file() else f"holds no {_FILE}"
        hint = f"download {_FILE} from the same place: a tokenizer.json cannot be read"
        raise UserError(has, where=path, hint=hint)
    return path / _FILE if path.is_dir() else path
