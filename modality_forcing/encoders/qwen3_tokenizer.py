"""Prompts to the token ids of Qwen3's chat template: the host side of a frozen text encoder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from modality_forcing.errors import UserError
from modality_forcing.paths import as_path, exists, is_dir, read_text
from modality_forcing.text_io import read_object, split_lines

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# One turn of the user, and the start of an answer without thinking; no system turn.
BEFORE, AFTER = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
PAD = "<|endoftext|>"
FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # either of these
_CONTROL = ("<|im_start|>", "<|im_end|>", "<|im_start|>", "<think>", "</think>")  # of the template
# Tokens after the vocabulary, in order. A tokenizer.json lists them, a vocab.json does not.
_ADDED = (
    *(PAD, "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    *("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>"),
    *("<think>", "</think>"),
)
# Contractions, words, single digits, punctuation, line ends, spaces (Qwen2Tokenizer).
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_OTHER = "give the tokenizer of Qwen3-4B or Qwen3-8B"


@dataclass(frozen=True)
class Qwen3Tokenizer:
    """Encodes a prompt in the chat template of FLUX.2 [klein], cut or padded on the right to l.

    tokens: l (512 in FLUX.2). model: path of a tokenizer.json, or of a folder with one, or with
    vocab.json and merges.txt.

    Of a prompt that is too long, the template's end is cut first, as in the references. Text that
    looks like a control token (`<|im_end|>`) is that token, as in the references too: it ends the
    user's turn early, and nothing else depends on it.

    Pickled as its path; each process reads the model once. Raises UserError if there is no such
    tokenizer, it is not Qwen3's, or l has no room for the template.
    """

    tokens: int
    model: str

    def __post_init__(self) -> None:
        # A wrong path fails here, not in a loader process's first batch.
        least = len(_ids(self.model, ""))
        if self.tokens < least:
            hint = f"it must be at least {least}, which the empty prompt takes"
            raise UserError(f"text tokens is {self.tokens}", hint=hint)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(_load(self.model).get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, caption: str) -> dict[str, np.ndarray]:
        """Returns {"tokens": i32 [l], "mask": bool [l]}; padding is <|endoftext|>."""
        ids = _ids(self.model, caption)[: self.tokens]
        tokens = np.full(self.tokens, _load(self.model).token_to_id(PAD), np.int32)
        tokens[: len(ids)] = ids
        return {"tokens": tokens, "mask": np.arange(self.tokens) < len(ids)}

    def null(self) -> dict[str, np.ndarray]:
        """Returns the encoding of the empty prompt, in the template."""
        return self.encode("")


def _ids(model: str, prompt: str) -> list[int]:
    # "replace": half a surrogate pair has no UTF-8.
    text = prompt.encode("utf-8", "replace").decode()
    return _load(model).encode(f"{BEFORE}{text}{AFTER}", add_special_tokens=False).ids


@lru_cache(maxsize=4)
def _load(model: str) -> Tokenizer:
    """Returns the tokenizer of the `tokenizers` library, without truncation and padding."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        what = "captions of a Qwen3 encoder need the package tokenizers"
        raise UserError(what, hint="pip install 'modality_forcing[encoders]'") from error
    path = _find(as_path(model))
    try:
        if path.suffix == ".json":
            made = Tokenizer.from_str(read_text(path))
        else:
            made = _from_merges(path)
    except UserError:
        raise
    except Exception as error:  # the library raises no kind of its own
        what = f"is no tokenizer, or truncated ({' '.join(str(error).split())})"
        raise UserError(what, where=path, hint="download it again") from error
    made.no_truncation()
    made.no_padding()
    if lacks := [name for name in (PAD, *_CONTROL) if made.token_to_id(name) is None]:
        raise UserError(f"has no token {lacks[0]}", where=path, hint=_OTHER)
    found = made.encode(BEFORE + AFTER, add_special_tokens=False).ids
    control = [made.token_to_id(name) for name in _CONTROL]
    if [i for i in found if i in control] != control:
        what = "does not find the control tokens of the chat template"
        raise UserError(what, where=path, hint=_OTHER)
    return made


def _find(path: Path) -> Path:
    """Returns a tokenizer.json, or the folder of vocab.json and merges.txt."""
    if not exists(path):
        hint = "give the folder of a Qwen3 encoder with its tokenizer.json"
        raise UserError("no such file or folder", where=path, hint=hint)
    if not is_dir(path):
        return path
    whole, parts = FILES
    if exists(path / whole[0]):
        return path / whole[0]
    if all(exists(path / name) for name in parts):
        return path
    hint = "download it from the same place as the weights (in diffusers' layout, from tokenizer/)"
    raise UserError("holds no tokenizer.json", where=path, hint=hint)


def _from_merges(folder: Path) -> Tokenizer:
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    vocab_file, merges_file = (folder / name for name in FILES[1])
    vocab = read_object(vocab_file, hint="download it again")
    if not all(type(i) is int for i in vocab.values()):
        raise UserError("is no vocabulary", where=vocab_file, hint="download it again")
    lines = [line for line in split_lines(read_text(merges_file)) if line]
    pairs = [line.partition(" ") for line in lines if not line.startswith("#version")]
    if wrong := ["".join(pair) for pair in pairs if not pair[2] or " " in pair[2]]:
        what = f"holds {wrong[0]!r}, not a pair of tokens"
        raise UserError(what, where=merges_file, hint="download it again")
    merges = [(left, right) for left, _, right in pairs]
    first = max(vocab.values(), default=-1) + 1
    added = {name: first + i for i, name in enumerate(_ADDED)}
    made = Tokenizer(models.BPE(vocab=vocab | added, merges=merges))
    made.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(_WORDS), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.add_tokens([AddedToken(name, normalized=False) for name in _ADDED])
    return made
