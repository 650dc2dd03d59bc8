"""Prepared examples: a record as a tf.train.Example of tens of kilobytes, decoded in 1 ms.

Features, by name:

image       a JPEG, WebP or PNG
size        int, rows and columns
valid       zlib of the mask's bits, row by row, first pixel in the highest bit; empty without depth
depth       zlib of the depths of the valid pixels, row by row: see `coding`
coding      "floats": little-endian f32, exact; "log": u16 codes (`STEP`), as differences modulo
            65536 in two zlib streams, low bytes and high bytes; "none": no pixel is valid
nearest     float, the depth of code 0; 0 for other codings
intrinsics  9 floats, row by row; NaN where unknown
caption, unit, source, id   text
other_captions              texts, left out where an image has one caption

With up to 20% of valid pixels (`SPARSE`), depth is single measurements and stored exactly. Above
that it is a surface, stored as even steps of its logarithm: to 0.01% (`STEP` / 2), better than any
sensor, in a third of the bytes. A range too wide for 65536 steps (1 : 490,000) is stored as floats.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal, cast, get_args

import numpy as np
from PIL import Image

from modality_forcing.data.files import DECODE_ERRORS, decode_jpeg
from modality_forcing.data.records import Record, Unit
from modality_forcing.storage import tf_example

ImageFormat = Literal["jpeg", "webp", "png"]
_Features = Mapping[str, tf_example.Feature]

SPARSE = 0.2  # fraction of pixels up to which depth is exact
STEP = 2e-4  # between codes, in the natural logarithm of depth
_CODES = 65536
_MIN_DEPTH, _MAX_DEPTH = 1e-30, 1e30
_LEVEL = 4  # of zlib: 6 takes two to four times as long for 2% fewer bytes
_WORTHWHILE = 0.7  # ratio that compression of a byte plane must reach
_FLOATS, _LOG, _NONE = b"floats", b"log", b"none"
_JPEG_MAGIC = b"\xff\xd8"


def encode(record: Record, image_format: ImageFormat = "jpeg", quality: int = 95) -> bytes:
    """Returns an Example of the record; quality is for JPEG and WebP, PNG is lossless.

    The same record gives the same bytes with the same versions of Pillow and zlib.
    """
    height, width = record.depth.shape
    coding, depth, nearest = _encode_depth(record.depth, record.valid)
    valid = b""
    if coding != _NONE:
        valid = zlib.compress(np.packbits(record.valid).tobytes(), _LEVEL)
    others = [caption.encode() for caption in record.other_captions]
    return tf_example.encode(
        {
            **({"other_captions": others} if others else {}),
            "image": [_encode_image(record.image, image_format, quality)],
            "size": [height, width],
            "valid": [valid],
            "depth": [depth],
            "coding": [coding],
            "nearest": [nearest],
            "intrinsics": record.intrinsics.ravel().tolist(),
            "caption": [record.caption.encode()],
            "unit": [record.unit.encode()],
            "source": [record.source.encode()],
            "id": [record.id.encode()],
        }
    )


def decode(content: bytes, pixels: bool = True) -> Record:
    """Returns the record of an Example, depth 0 where not valid; raises ValueError for other bytes.

    pixels: if false, the image is black and not decoded, which takes most of the time.
    """
    try:
        features = tf_example.decode(content)
        height, width = (int(number) for number in features["size"])
        if pixels:  # first: it confirms the size
            image = _decode_image(_bytes(features, "image"), (height, width))
        else:
            image = np.broadcast_to(np.uint8(0), (height, width, 3))
        depth, valid = _decode_depth(features, (height, width))
        unit = _text(features, "unit")
        if unit not in get_args(Unit):
            raise ValueError(f"unit {unit!r}")
        return Record(
            image=image,
            depth=depth,
            valid=valid,
            intrinsics=np.array(features["intrinsics"], np.float32).reshape(3, 3),
            unit=cast(Unit, unit),
            caption=_text(features, "caption"),
            source=_text(features, "source"),
            id=_text(features, "id"),
            other_captions=_other_captions(features),
        )
    except (OSError, *DECODE_ERRORS) as error:
        raise ValueError(f"not a prepared example ({error or type(error).__name__})") from error


def captions(content: bytes) -> tuple[str, ...]:
    """Returns all captions of an Example, decoding nothing else; raises ValueError as `decode`."""
    try:
        features = tf_example.decode(content)
        return (_text(features, "caption"), *_other_captions(features))
    except (LookupError, ValueError, TypeError) as error:
        raise ValueError(f"not a prepared example ({error or type(error).__name__})") from error


def _encode_image(image: np.ndarray, image_format: ImageFormat, quality: int) -> bytes:
    options = {} if image_format == "png" else {"quality": quality}
    if image_format == "jpeg":
        options["subsampling"] = 0  # at a few hundred pixels, half the color resolution shows
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, image_format.upper(), **options)
    return buffer.getvalue()


def _decode_image(content: bytes, size: tuple[int, int]) -> np.ndarray:
    if content.startswith(_JPEG_MAGIC):
        image = decode_jpeg(content)
        if image.shape != (*size, 3):
            raise ValueError(f"image {image.shape}")
        return image
    with Image.open(io.BytesIO(content), formats=("JPEG", "WEBP", "PNG")) as opened:
        if opened.mode != "RGB" or opened.size != (size[1], size[0]):
            raise ValueError(f"image {opened.mode} {opened.size}")
        return np.asarray(opened)


def _encode_depth(depth: np.ndarray, valid: np.ndarray) -> tuple[bytes, bytes, float]:
    """Returns coding, content and the nearest depth."""
    values = depth[valid].astype(np.float32)
    if not values.size:
        return _NONE, b"", 0.0
    nearest = float(values.min())
    steps = np.rint(np.log(values.astype(np.float64) / nearest) / STEP)
    # Beyond these, float32 itself is coarse, or a rounded step is infinite.
    extreme = nearest < _MIN_DEPTH or values.max() > _MAX_DEPTH
    if values.size <= SPARSE * valid.size or steps.max() >= _CODES or extreme:
        return _FLOATS, zlib.compress(values.astype("<f4").tobytes(), _LEVEL), 0.0
    differences = np.diff(steps.astype(np.uint16), prepend=np.uint16(0))  # modulo 65536
    low, high = (differences & 255).astype(np.uint8), (differences >> 8).astype(np.uint8)
    return _LOG, _compress(low.tobytes()) + _compress(high.tobytes()), nearest


def _compress(plane: bytes) -> bytes:
    """Returns a zlib stream, stored if the bytes are nearly random, as a sensor's lowest bits are.

    A stored stream takes no time to read.
    """
    compressed = zlib.compress(plane, _LEVEL)
    return compressed if len(compressed) < _WORTHWHILE * len(plane) else zlib.compress(plane, 0)


def _decode_depth(features: _Features, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns depth f32 [h w] and valid bool [h w]."""
    depth, coding = np.zeros(size, np.float32), _bytes(features, "coding")
    if coding == _NONE:
        return depth, np.zeros(size, np.bool_)
    bits = np.frombuffer(zlib.decompress(_bytes(features, "valid")), np.uint8)
    valid = np.unpackbits(bits, count=depth.size).reshape(size).view(np.bool_)
    if coding == _FLOATS:
        values = np.frombuffer(zlib.decompress(_bytes(features, "depth")), "<f4")
    elif coding == _LOG:
        values = _decode_log(_bytes(features, "depth"), np.float32(features["nearest"][0]))
    else:
        raise ValueError(f"coding {coding!r}")
    if np.count_nonzero(valid) != values.size:
        raise ValueError(f"{values.size} depths for {np.count_nonzero(valid)} pixels")
    if values.size and not (values.min() > 0 and values.max() < np.inf):  # false for NaN as well
        raise ValueError("a depth that is not finite and positive")
    if values.size == depth.size:
        return values.astype(np.float32, copy=False).reshape(size), valid
    depth.reshape(-1)[np.flatnonzero(valid)] = values  # faster than by the mask
    return depth, valid


def _decode_log(content: bytes, nearest: np.float32) -> np.ndarray:
    first = zlib.decompressobj()
    low = np.frombuffer(first.decompress(content), np.uint8)
    high = np.frombuffer(zlib.decompress(first.unused_data), np.uint8)
    differences = high.astype(np.uint16)
    differences <<= 8
    differences |= low
    # A sum in u16 takes three times as long.
    values = _code_factors().take(differences.cumsum(dtype=np.uint32).astype(np.uint16))
    values *= nearest
    return values


@lru_cache(1)
def _code_factors() -> np.ndarray:
    """Returns the ratio of each code's depth to the nearest depth, f32 [65536]."""
    with np.errstate(over="ignore"):
        return np.exp(np.arange(_CODES) * STEP).astype(np.float32)


def _bytes(features: _Features, name: str) -> bytes:
    value = features[name][0]
    if not isinstance(value, bytes):
        raise ValueError(f"{name} is not bytes")
    return value


def _other_captions(features: _Features) -> tuple[str, ...]:
    stored = features.get("other_captions", [])
    return tuple(text.decode() for text in stored if isinstance(text, bytes))


def _text(features: _Features, name: str) -> str:
    return _bytes(features, name).decode()
