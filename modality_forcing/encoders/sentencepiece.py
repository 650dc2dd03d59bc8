"""Captions to the token ids of a SentencePiece model: the host side of a frozen text encoder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from modality_forcing.errors import UserError
from modality_forcing.paths import as_path, exists, is_dir, is_file, read_bytes

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

PAD, EOS, UNK = 0, 1, 2  # in every T5 and UMT5
_FILE = "spiece.model"


@dataclass(frozen=True)
class SentencePieceTokenizer:
    """Encodes a caption as its pieces and an end token, cut to at most l tokens with the end last.

    tokens: l. model: path of a SentencePiece model, or of the folder with its `spiece.model`.

    Any white space counts as one space, as in the Wan pipeline; there the tokenizers of
    transformers agree with SentencePiece but for two things. A letter without a piece becomes its
    bytes here if the model has pieces for bytes, as it was trained; some of theirs make it
    unknown. And text that looks like a control symbol (`</s>`) is text here.

    Pickled as its path; each process reads the model once. Raises UserError if there is no such
    model, or it is not of T5's kind.
    """

    tokens: int
    model: str

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise UserError(f"text tokens is {self.tokens}", hint="it must be at least 1")
        _processor(self.model)  # a wrong path fails here, not in a loader process's first batch

    @property
    def vocab_size(self) -> int:
        """The number of pieces."""
        return _processor(self.model).GetPieceSize()

    def encode(self, caption: str) -> dict[str, np.ndarray]:
        """Returns {"tokens": i32 [l], "mask": bool [l]}; the end is a real token, padding is 0."""
        # "replace": half a surrogate pair has no UTF-8.
        text = " ".join(caption.split()).encode("utf-8", "replace")
        ids = [*_processor(self.model).encode(text)[: self.tokens - 1], EOS]
        tokens = np.full(self.tokens, PAD, np.int32)
        tokens[: len(ids)] = ids
        return {"tokens": tokens, "mask": np.arange(self.tokens) < len(ids)}

    def null(self) -> dict[str, np.ndarray]:
        """Returns the encoding of the empty caption: the end alone."""
        return self.encode("")


@lru_cache(maxsize=4)
def _processor(model: str) -> SentencePieceProcessor:
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        what = "captions of a frozen text encoder need the package sentencepiece"
        raise UserError(what, hint="pip install 'modality_forcing[encoders]'") from error
    path = _find_model(as_path(model))
    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(read_bytes(path))
        ids = processor.pad_id(), processor.eos_id(), processor.unk_id()
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        raise UserError(what, where=path, hint="check the path") from error
    except RuntimeError as error:
        what = "is no SentencePiece model, or truncated"
        raise UserError(what, where=path, hint="download it again") from error
    if ids != (PAD, EOS, UNK):
        what = "has its padding, end and unknown token at {}, {} and {}".format(*ids)
        hint = f"give a T5's or UMT5's model, with {PAD}, {EOS} and {UNK}"
        raise UserError(what, where=path, hint=hint)
    return processor


def _find_model(path: Path) -> Path:
    if not exists(path):
        hint = f"give the {_FILE} of a text encoder"
        raise UserError("no such file or folder", where=path, hint=hint)
    if path.suffix == ".json" or (is_dir(path) and not exists(path / _FILE)):
        what = "is a tokenizer.json" if is_file(path) else f"holds no {_FILE}"
        hint = f"download {_FILE} from the same place: a tokenizer.json cannot be read"
        raise UserError(what, where=path, hint=hint)
    return path / _FILE if is_dir(path) else path
