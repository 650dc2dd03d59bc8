"""Writes data/umt5_*.npz: outputs of transformers' UMT5EncoderModel (needs torch).

python -m tests.parity.make_umt5_goldens           writes the files
python -m tests.parity.make_umt5_goldens --check   compares instead, tokenizers too

Only outputs are stored: configs, weights and inputs are functions of this file (NumPy only).
Written with transformers 5.24.0 and torch 2.13.0.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

FOLDER = Path(__file__).parent / "data"
SHARED = {
    "model_type": "umt5",
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-6,
    "vocab_size": 101,
}
CASES: dict[str, dict[str, Any]] = {
    "odd": {"d_model": 48, "d_kv": 10, "d_ff": 72, "num_heads": 3, "num_layers": 3},
    "long": {
        "d_model": 24,
        "d_kv": 16,
        "d_ff": 40,
        "num_heads": 2,
        "num_layers": 2,
    },  # heads x head dim is not the width
    "buckets": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 2},
}
# Their number, and the largest distance.
BUCKETS = {"odd": (32, 128), "long": (32, 128), "buckets": (20, 50)}
# Of the captions; padded to the longest, or 20.
LENGTHS = {"odd": (17, 5, 1, 12), "long": (300, 131), "buckets": (90, 33, 2)}


def config(case: str) -> dict[str, Any]:
    """The case's config.json."""
    count, distance = BUCKETS[case]
    reach = {"relative_attention_num_buckets": count, "relative_attention_max_distance": distance}
    return SHARED | CASES[case] | reach


def weights(c: dict[str, Any], table: str = "shared.weight") -> dict[str, np.ndarray]:
    """Tensors of the encoder's file, f32 [out in]: uniform, with logits and biases near 1."""
    d, k, f, h = c["d_model"], c["d_kv"], c["d_ff"], c["num_heads"]
    block = {
        "layer.0.SelfAttention.q": ((h * k, d), (d * k**0.5) ** -0.5),
        "layer.0.SelfAttention.k": ((h * k, d), d**-0.5),
        "layer.0.SelfAttention.v": ((h * k, d), d**-0.5),
        "layer.0.SelfAttention.o": ((d, h * k), (h * k) ** -0.5),
        "layer.0.SelfAttention.relative_attention_bias": (
            (c["relative_attention_num_buckets"], h),
            1.0,
        ),
        "layer.0.layer_norm": ((d,), 0.3),
        "layer.1.DenseReluDense.wi_0": ((f, d), d**-0.5),
        "layer.1.DenseReluDense.wi_1": ((f, d), d**-0.5),
        "layer.1.DenseReluDense.wo": ((d, f), f**-0.5),
        "layer.1.layer_norm": ((d,), 0.3),
    }
    shapes = {
        f"encoder.block.{i}.{name}.weight": of
        for i in range(c["num_layers"])
        for name, of in block.items()
    }
    shapes |= {table: ((c["vocab_size"], d), 1.0), "encoder.final_layer_norm.weight": ((d,), 0.3)}

    def tensor(name: str, shape: tuple[int, ...], spread: float) -> np.ndarray:
        seed = crc32(b"table" if name == table else name.encode())
        uniform = np.random.default_rng(seed).random(shape) * 2 - 1
        return (3**0.5 * spread * uniform + (1.0 if "norm" in name else 0.0)).astype(np.float32)

    return {name: tensor(name, *of) for name, of in shapes.items()}


def inputs(case: str) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask [b l]: random tokens, the end, padding."""
    lengths = np.array(LENGTHS[case])[:, None]
    l = max(20, int(lengths.max()))
    uniform = np.random.default_rng(crc32(case.encode())).random((len(lengths), l))
    ids, place = 2 + (uniform * (SHARED["vocab_size"] - 2)).astype(np.int64), np.arange(l)
    return np.where(place < lengths - 1, ids, np.where(place == lengths - 1, 1, 0)), place < lengths


def reference(case: str, dtype: str) -> np.ndarray:
    """Returns the states f32 [tokens d] of all real tokens by transformers, caption by caption."""
    import torch
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    ids, mask = inputs(case)
    model = UMT5EncoderModel._from_config(
        UMT5Config(**config(case)), attn_implementation="eager"
    ).eval()
    stored = {name: torch.from_numpy(value) for name, value in weights(config(case)).items()}
    stored["encoder.embed_tokens.weight"] = stored["shared.weight"]
    model.load_state_dict(stored)  # strict: raises on unknown and on missing names
    model = model.to(getattr(torch, dtype))
    with torch.no_grad():
        states = model(
            torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))
        ).last_hidden_state
    return states.float().numpy()[mask]


def spiece(folder: Path, bytes_for_unknown: bool = True) -> Path:
    """Trains a real SentencePiece model in T5's format on a few lines."""
    from sentencepiece import SentencePieceTrainer

    things = (
        "a red cube",
        "two blue spheres",
        "the old wooden table",
        "ein grünes Haus",
        "un gato negro",
        "赤い球",
    )
    lines = [f"{a} beside {b}, number {i}." for i, a in enumerate(things) for b in things]
    written = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=written,
        model_type="unigram",
        vocab_size=400,
        hard_vocab_limit=False,
        byte_fallback=bytes_for_unknown,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    path = folder / "spiece.model"
    path.write_bytes(written.getvalue())
    return path


CAPTIONS = (
    "",
    "a red cube",
    "  two   blue\tspheres\n beside the table. ",
    "Zwölf grüne Häuser, 3½ €",
    "赤い球と 猫",
    "🙂 emoji 👩\u200d🚀 and ＦＵＬＬ",
    "non\u00a0breaking\u3000space",
    "don't, can't: “quoted” (twice)",
    "x" * 200,
    "a cube " * 40,
    "عربى हिन्दी",
    "under▁scored __",
)


def tokenized(folder: Path, tokens: int) -> dict[str, list[str]]:
    """Returns captions split differently from `SentencePieceTokenizer`.

    White space is normalized for both.
    Its T5Tokenizer has no byte pieces; a tokenizer.json can have them.
    """
    from types import SimpleNamespace

    from transformers import PreTrainedTokenizerFast, T5Tokenizer
    from transformers.convert_slow_tokenizer import T5Converter

    from modality_forcing.encoders.sentencepiece import SentencePieceTokenizer

    differ = {}
    for with_bytes in (False, True):
        (own := folder / str(with_bytes)).mkdir()
        ours = SentencePieceTokenizer(tokens, str(spiece(own, with_bytes)))
        slow = SimpleNamespace(
            vocab_file=str(own / "spiece.model"), _extra_ids=300, convert_tokens_to_ids=lambda _: 1
        )
        converter = type("Converter", (T5Converter,), {"handle_byte_fallback": with_bytes})(slow)
        converter.converted().save(str(own / "tokenizer.json"))
        from_json = PreTrainedTokenizerFast(
            tokenizer_file=str(own / "tokenizer.json"), pad_token="<pad>"
        )
        theirs = {"tokenizer.json": from_json} | (
            {} if with_bytes else {"T5Tokenizer": T5Tokenizer.from_pretrained(own)}
        )
        for name, tokenizer in theirs.items():
            differ[f"{name}, {'with' if with_bytes else 'without'} byte pieces"] = [
                caption
                for caption in CAPTIONS
                if not same_tokens(ours.encode(caption), tokenizer, caption)
            ]
    return differ


def same_tokens(ours: dict[str, np.ndarray], tokenizer: Any, caption: str) -> bool:
    most = len(ours["mask"])
    found = tokenizer(
        " ".join(caption.split()), max_length=most, truncation=True, padding="max_length"
    )
    return (
        found["input_ids"] == ours["tokens"].tolist()
        and found["attention_mask"] == ours["mask"].tolist()
    )


def main(check: bool) -> None:
    for case in CASES:
        path = FOLDER / f"umt5_{case}.npz"
        made = {dtype: reference(case, dtype) for dtype in ("float32", "bfloat16")}
        halves = made["bfloat16"].view(np.uint32) >> 16  # exact: the values are bfloat16
        if not check:
            np.savez_compressed(path, float32=made["float32"], bfloat16=halves.astype(np.uint16))
        with np.load(path) as stored:
            error = (
                np.abs(stored["float32"] - made["float32"]).max() / np.abs(made["float32"]).max()
            )
            same = np.mean(stored["bfloat16"] == halves)
        half = np.abs(made["bfloat16"] - made["float32"]).max() / np.abs(made["float32"]).max()
        print(
            f"{case}: float32 within {error:.1e}, bfloat16 {same:.1%} equal; "
            f"theirs differs by {half:.1e} from float32"
        )
        assert error < 1e-6 and same > 0.99, path
    with tempfile.TemporaryDirectory() as folder:
        for name, captions in tokenized(Path(folder), tokens=64).items():
            print(f"{name}: {len(captions)} of {len(CAPTIONS)} captions differ", captions)


if __name__ == "__main__":
    main("--check" in sys.argv[1:])
