"""Features of images for distances between sets: Inception and CLIP, from published weights.

The networks are those of torch-fidelity and transformers (extra `fid`): FID and KID are defined by
one network with one way of resizing, and numbers of another one do not compare. They run on the
CPU. This is the only module that imports torch, and no pickle is read.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from modality_forcing.errors import UserError
from modality_forcing.paths import as_path, is_dir, is_file, read_bytes

Images = UInt8[np.ndarray, "b h w 3"]
Extract = Callable[[Images], Float[np.ndarray, "b d"]]
ExtractTexts = Callable[[Sequence[str]], Float[np.ndarray, "b d"]]

# Features of each metric.
KINDS = {"fid": "inception", "kid": "inception", "cmmd": "clip", "clip_score": "clip"}
_TEXTS = 64  # captions that are embedded at a time
CLIP = "openai/clip-vit-large-patch14-336"  # CMMD's
_CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
_CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
_EXTRA = "pip install 'modality_forcing[fid]'"


def open_features(kind: str, where: str) -> Extract:
    """Returns what maps images u8 [b h w 3] to features f32 [b d].

    Args:
      kind: inception or clip.
      where: the safetensors file of FID's Inception network, with the names of torch-fidelity; for
        clip a hub id or a folder with safetensors.

    Raises UserError for a missing package and for a file that is missing, damaged or of another
    network.
    """
    return _open_clip(where) if kind == "clip" else _open_inception(where)


def _open_inception(where: str) -> Extract:
    hint = "convert weights-inception-2015-12-05-6726825d.pth as docs/evaluation.md shows"
    if not where:
        raise UserError("--inception is missing", hint=f"name the weights; {hint}")
    path = as_path(where)
    if not is_file(path):
        raise UserError("no such file", where=path, hint=hint)
    _check_packages("torch", "torch_fidelity")
    import torch  # pyright: ignore[reportMissingImports]
    from torch_fidelity import FeatureExtractorInceptionV3  # pyright: ignore[reportMissingImports]

    state = _read_safetensors(path)
    file = io.BytesIO()  # the network reads files of torch alone; this one is ours
    torch.save(state, file)
    file.seek(0)
    try:
        network = FeatureExtractorInceptionV3(
            "inception", ["2048"], feature_extractor_weights_path=file
        )
    except RuntimeError as error:  # of load_state_dict: names or shapes
        what = f"these are not the tensors of FID's Inception network ({_first_line(error)})"
        raise UserError(what, where=path, hint=hint) from error

    def extract(images: Images) -> np.ndarray:
        with torch.inference_mode():
            (features,) = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        return features.numpy()

    return extract


def _open_clip(where: str) -> Extract:
    _check_packages("torch", "transformers")
    import torch  # pyright: ignore[reportMissingImports]

    network = _load_clip("CLIPVisionModelWithProjection", where)
    network.train(False)
    side = network.config.image_size

    def extract(images: Images) -> np.ndarray:
        # CMMD's way of resizing: bicubic, the aspect is not kept.
        shape = (len(images), side, side, 3)
        resized = jax.image.resize(jnp.asarray(images, jnp.float32) / 255, shape, "bicubic")
        pixels = (np.asarray(resized) - _CLIP_MEAN) / _CLIP_STD
        with torch.inference_mode():
            found = network(pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
        return found.image_embeds.numpy()

    return extract


def open_texts(where: str) -> ExtractTexts:
    """Returns what maps captions to CLIP's features f32 [b d]; their tokens above 77 are cut off.

    where: as of `open_features`, with the files of the tokenizer. Raises UserError as there.
    """
    _check_packages("torch", "transformers")
    import torch  # pyright: ignore[reportMissingImports]

    network = _load_clip("CLIPTextModelWithProjection", where)
    tokenizer = _load_clip("CLIPTokenizerFast", where)
    # The library makes an empty tokenizer where its files are missing.
    if len(tokenizer) != network.config.vocab_size:
        what = f"the tokenizer has {len(tokenizer)} tokens, the network {network.config.vocab_size}"
        hint = "put the network's own vocab.json and merges.txt, or tokenizer.json, beside it"
        raise UserError(what, where=where, hint=hint)
    network.train(False)
    most = network.config.max_position_embeddings

    def extract(texts: Sequence[str]) -> np.ndarray:
        found = []
        for start in range(0, len(texts), _TEXTS):
            chunk = list(texts[start : start + _TEXTS])
            options = {"padding": True, "truncation": True, "max_length": most}
            with torch.inference_mode():
                tokens = tokenizer(chunk, return_tensors="pt", **options)
                found.append(network(**tokens).text_embeds.numpy())
        return np.concatenate(found)

    return extract


def _load_clip(kind: str, where: str) -> Any:
    """Returns a part of a CLIP network, by the name of its class: a tower or the tokenizer."""
    import transformers  # pyright: ignore[reportMissingImports]

    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()  # it would list the weights of the other tower
    options: dict[str, object] = {"local_files_only": is_dir(Path(where))}
    is_tower = not kind.startswith("CLIPTokenizer")
    if is_tower:
        options |= {"use_safetensors": True, "output_loading_info": True}
    needed = "config.json and model.safetensors" if is_tower else "the files of the tokenizer"
    hint = f"name a hub id, or a folder with {needed}, by --clip"
    try:
        loaded = getattr(transformers, kind).from_pretrained(where, **options)
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        what = f"no CLIP network ({_first_line(error)})"
        raise UserError(what, where=where, hint=hint) from error
    if not is_tower:
        return loaded
    network, info = loaded
    if missing := sorted(info["missing_keys"]):  # the library fills them with noise
        what = f"no CLIP network (it lacks {missing[0]} and others, {len(missing)} in all)"
        raise UserError(what, where=where, hint=hint)
    return network


def _read_safetensors(path: Path) -> Mapping[str, object]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(read_bytes(path))
    except SafetensorError as error:
        what = f"is no safetensors file ({_first_line(error)})"
        hint = "convert it as docs/evaluation.md shows; pickles are not read"
        raise UserError(what, where=path, hint=hint) from error


def _check_packages(*names: str) -> None:
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"this metric needs the package {name}", hint=_EXTRA)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:200] if lines else type(error).__name__
