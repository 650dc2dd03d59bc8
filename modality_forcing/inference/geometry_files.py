"""PLY and GLB files of colored points and triangles.

Both are a header and arrays, less code than what a library needs around it: trimesh writes colors
of GLB as if they were linear, so that viewers show them too bright, and no material. Tests read the
files with trimesh. Formats: Turk's PLY 1.0, binary; Khronos glTF 2.0 with KHR_materials_unlit.
"""

from __future__ import annotations

import json
import struct

import numpy as np

_FLOAT, _U16, _U32 = 5126, 5123, 5125  # component types of glTF
_VERTICES, _INDICES = 34962, 34963  # targets of its buffer views
_POINTS, _TRIANGLES = 0, 4  # modes of its primitives


def ply(xyz: np.ndarray, rgb: np.ndarray, faces: np.ndarray | None = None) -> bytes:
    """Returns a binary PLY of xyz f32 [n 3] and rgb u8 [n 3], with faces [m 3] if given."""
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(xyz)}"]
    lines += [f"property float {axis}" for axis in "xyz"]
    lines += [f"property uchar {color}" for color in ("red", "green", "blue")]
    vertices = np.empty(len(xyz), [("xyz", "<f4", 3), ("rgb", "u1", 3)])
    vertices["xyz"], vertices["rgb"] = xyz, rgb
    body = vertices.tobytes()
    if faces is not None:
        lines += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
        triangles = np.empty(len(faces), [("count", "u1"), ("index", "<i4", 3)])
        triangles["count"], triangles["index"] = 3, faces
        body += triangles.tobytes()
    return "\n".join([*lines, "end_header", ""]).encode("ascii") + body


def glb(xyz: np.ndarray, rgb: np.ndarray, faces: np.ndarray | None = None) -> bytes:
    """Returns a GLB of points, or of triangles if faces [m 3] are given.

    xyz f32 [n 3] has y down and z forward, as cameras have it; the file has y up and z backward.
    rgb u8 [n 3] is sRGB; the file has linear colors in 16 bits.
    """
    position = (xyz * np.array([1, -1, -1])).astype("<f4")
    colors = np.full((len(rgb), 4), 65535, "<u2")
    colors[:, :3] = _LINEAR[rgb]
    arrays = [(position, _FLOAT, "VEC3", _VERTICES), (colors, _U16, "VEC4", _VERTICES)]
    primitive: dict[str, object] = {
        "attributes": {"POSITION": 0, "COLOR_0": 1},
        "material": 0,
        "mode": _POINTS,
    }
    if faces is not None:
        arrays.append((faces.reshape(-1).astype("<u4"), _U32, "SCALAR", _INDICES))
        primitive |= {"indices": 2, "mode": _TRIANGLES}
    views, accessors, offset = [], [], 0
    for array, component, kind, target in arrays:  # each a multiple of 4 bytes
        view = {"buffer": 0, "byteOffset": offset, "byteLength": array.nbytes, "target": target}
        accessor = {
            "bufferView": len(views),
            "componentType": component,
            "count": len(array),
            "type": kind,
        }
        if component == _U16:
            accessor["normalized"] = True
        elif component == _FLOAT:
            accessor |= {"min": array.min(axis=0).tolist(), "max": array.max(axis=0).tolist()}
        views.append(view)
        accessors.append(accessor)
        offset += array.nbytes
    unlit = "KHR_materials_unlit"
    scene = {
        "asset": {"version": "2.0", "generator": "modality_forcing"},
        "extensionsUsed": [unlit],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        "materials": [{"doubleSided": True, "extensions": {unlit: {}}}],
        "buffers": [{"byteLength": offset}],
        "bufferViews": views,
        "accessors": accessors,
    }
    header = json.dumps(scene, separators=(",", ":")).encode("ascii")
    header += b" " * (-len(header) % 4)
    body = b"".join(array.tobytes() for array, *_ in arrays)
    total = 12 + 8 + len(header) + 8 + len(body)
    chunks = struct.pack("<I4s", len(header), b"JSON") + header
    chunks += struct.pack("<I4s", len(body), b"BIN\0") + body
    return struct.pack("<4sII", b"glTF", 2, total) + chunks


def _linear_table() -> np.ndarray:
    """Returns the linear color u16 [256] of each code of sRGB."""
    srgb = np.arange(256) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return np.rint(linear * 65535).astype(np.uint16)


_LINEAR = _linear_table()
