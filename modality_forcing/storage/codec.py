"""One prepared example: a record as a tf.train.Example of a few tens of kilobytes, and back in a millisecond.

Features, by name:

image       a JPEG, WebP or PNG
size        int, rows and columns
valid       zlib of the mask's bits, row by row, first pixel in the highest bit; nothing where no pixel is valid
depth       zlib of the depths of the valid pixels, row by row: see `coding`
coding      "floats": little-endian f32 to the bit; "log": u16 codes (`STEP`), each less the one before it, in two streams of
            zlib, low bytes and high bytes; "none": no pixel is valid
nearest     float, the depth that code 0 stands for; 0 for other codings
intrinsics  9 floats, row by row; NaN where unknown
caption, unit, source, id   text

Up to a fifth of valid pixels (`SPARSE`) depth is kept as floats, to the bit: these are single measurements. Above that it
is a surface, and kept as even steps of its logarithm to 0.01% of itself (`STEP` / 2), which no sensor comes near, in a
third of the bytes; unless its range is too wide for 65536 steps (1 : 490 000), when it is floats again.
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

SPARSE = 0.2  # part of the pixels: up to here depth is kept to the bit
STEP = 2e-4  # between codes, in the natural logarithm of depth
_CODES = 65536
_LEAST, _MOST = 1e-30, 1e30
_LEVEL = 4  # of zlib: 6 takes twice to four times as long, for bytes that are fewer by a fiftieth
_PAYS = 0.7  # of its size, which a plane must be packed to
_FLOATS, _LOG, _NONE = b"floats", b"log", b"none"
_JPEG = b"\xff\xd8"  # what one begins with


def encode(record: Record, image_format: ImageFormat = "jpeg", quality: int = 95) -> bytes:
    """Returns an Example of the record; quality is for JPEG and WebP, and PNG keeps the picture to the bit.

    The same record gives the same bytes with the same versions of Pillow and zlib.
    """
    height, width = record.depth.shape
    coding, depth, nearest = _encode_depth(record.depth, record.valid)
    return tf_example.encode(
        {
            "image": [_encode_image(record.image, image_format, quality)],
            "size": [height, width],
            "valid": [
                zlib.compress(np.packbits(record.valid).tobytes(), _LEVEL)
                if coding != _NONE
                else b""
            ],
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
    """Returns the record of an Example, depth 0 where it is not valid; raises ValueError for anything but an Example of ours.

    pixels: if false, the picture is left black and not decoded, which takes most of the time.
    """
    try:
        features = tf_example.decode(content)
        height, width = (int(number) for number in features["size"])
        if pixels:
            image = _decode_image(
                _bytes(features, "image"), (height, width)
            )  # first: it vouches for the size
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
        )
    except (OSError, *DECODE_ERRORS, TypeError) as error:
        raise ValueError(f"not a prepared example ({error or type(error).__name__})") from error


def caption(content: bytes) -> str:
    """Returns the caption of an Example and looks at nothing else of it; raises ValueError as `decode` does."""
    try:
        return _text(tf_example.decode(content), "caption")
    except (LookupError, ValueError, TypeError) as error:
        raise ValueError(f"not a prepared example ({error or type(error).__name__})") from error


def _encode_image(image: np.ndarray, image_format: ImageFormat, quality: int) -> bytes:
    options: Mapping[str, int] = {}
    if image_format != "png":
        # At a few hundred pixels, colours at half resolution can be seen.
        options = {"quality": quality, **({"subsampling": 0} if image_format == "jpeg" else {})}
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, image_format.upper(), **options)
    return buffer.getvalue()


def _decode_image(content: bytes, size: tuple[int, int]) -> np.ndarray:
    if content.startswith(_JPEG):
        image = decode_jpeg(content)
        if image.shape != (*size, 3):
            raise ValueError(f"picture {image.shape}")
        return image
    with Image.open(io.BytesIO(content), formats=("JPEG", "WEBP", "PNG")) as opened:
        if opened.mode != "RGB" or opened.size != (size[1], size[0]):
            raise ValueError(f"picture {opened.mode} {opened.size}")
        return np.asarray(opened)


def _encode_depth(depth: np.ndarray, valid: np.ndarray) -> tuple[bytes, bytes, float]:
    """Returns coding, content and the nearest depth."""
    known = depth[valid].astype(np.float32)
    if not known.size:
        return _NONE, b"", 0.0
    nearest = float(known.min())
    steps = np.rint(np.log(known.astype(np.float64) / nearest) / STEP)
    extreme = (
        nearest < _LEAST or known.max() > _MOST
    )  # where float32 itself is coarse, or a rounded step is infinite
    if known.size <= SPARSE * valid.size or steps.max() >= _CODES or extreme:
        return _FLOATS, zlib.compress(known.astype("<f4").tobytes(), _LEVEL), 0.0
    differences = np.diff(steps.astype(np.uint16), prepend=np.uint16(0))  # modulo 65536
    planes = (differences & 255, differences >> 8)
    return _LOG, b"".join(_packed(plane.astype(np.uint8).tobytes()) for plane in planes), nearest


def _packed(plane: bytes) -> bytes:
    """A stream of zlib, which takes no time to read where the bytes are as good as random: a sensor's last bits are."""
    packed = zlib.compress(plane, _LEVEL)
    return packed if len(packed) < _PAYS * len(plane) else zlib.compress(plane, 0)


def _decode_depth(
    features: Mapping[str, tf_example.Feature], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns depth f32 [h w] and valid bool [h w]."""
    depth, coding = np.zeros(size, np.float32), _bytes(features, "coding")
    if coding == _NONE:
        return depth, np.zeros(size, np.bool_)
    bits = np.frombuffer(zlib.decompress(_bytes(features, "valid")), np.uint8)
    valid = np.unpackbits(bits, count=depth.size).reshape(size).view(np.bool_)
    if coding == _FLOATS:
        known = np.frombuffer(zlib.decompress(_bytes(features, "depth")), "<f4")
    elif coding == _LOG:
        first = zlib.decompressobj()
        low = np.frombuffer(first.decompress(_bytes(features, "depth")), np.uint8)
        high = np.frombuffer(zlib.decompress(first.unused_data), np.uint8)
        differences = high.astype(np.uint16)
        differences <<= 8
        differences |= low
        # Not summed as u16, which takes three times as long.
        known = _steps().take(differences.cumsum(dtype=np.uint32).astype(np.uint16))
        known *= np.float32(features["nearest"][0])
    else:
        raise ValueError(f"coding {coding!r}")
    if np.count_nonzero(valid) != known.size:
        raise ValueError(f"{known.size} depths for {np.count_nonzero(valid)} pixels")
    if known.size and not (known.min() > 0 and known.max() < np.inf):  # false of NaN as well
        raise ValueError("a depth that is not finite and positive")
    if known.size == depth.size:
        return known.astype(np.float32, copy=False).reshape(size), valid
    depth.reshape(-1)[np.flatnonzero(valid)] = known  # quicker than by the mask
    return depth, valid


@lru_cache(1)
def _steps() -> np.ndarray:
    """What each code multiplies the nearest depth by, f32 [65536]."""
    with np.errstate(over="ignore"):
        return np.exp(np.arange(_CODES) * STEP).astype(np.float32)


def _bytes(features: Mapping[str, tf_example.Feature], name: str) -> bytes:
    value = features[name][0]
    if not isinstance(value, bytes):
        raise ValueError(f"{name} is not bytes")
    return value


def _text(features: Mapping[str, tf_example.Feature], name: str) -> str:
    return _bytes(features, name).decode()
