"""Host memory while a released network of 12 B parameters is loaded, beyond its weights.

python benchmarks/flux2_load.py            weights in bfloat16
python benchmarks/flux2_load.py --int8     block matrices quantized while they are read

The file has the header of the release and holds zeros, which take no room on the disk. Each array
is dropped before the next one is read, so that 8 GiB of memory suffice. Memory is what the process
has allocated (RssAnon); pages of the file are the system's to drop. It is sampled every 2 ms.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import tempfile
import threading
import time
from pathlib import Path

import jax

from modality_forcing.config import Config, DataConfig, ModalityConfig, TextConfig
from modality_forcing.encoders.weights import open_checkpoint
from modality_forcing.modalities import base
from modality_forcing.models import presets
from modality_forcing.models.flux2_layouts import FORCING
from modality_forcing.models.flux2_weights import Options, array_shapes, arrays
from modality_forcing.train.state import abstract_model

MIB = 2**20
CONFIG = Config(
    data=DataConfig(resolution=512),
    text=TextConfig(512, vocab_size=0, channels=12_288),
    modalities={
        "image": ModalityConfig(prediction="v", latent_channels=128),
        "depth": ModalityConfig(kind="depth", position_id=1, detokenizer_layers=4),
    },
    model=presets.size("klein-9b"),
)


class Watch:
    """The most memory that the process has had since `reset`."""

    def __init__(self):
        self.peak = 0
        self._stopped = threading.Event()
        threading.Thread(target=self._sample, daemon=True).start()

    def reset(self) -> int:
        """Forgets the peak; returns the memory now."""
        self.peak = memory()
        return self.peak

    def stop(self) -> None:
        """Ends the sampling."""
        self._stopped.set()

    def _sample(self) -> None:
        while not self._stopped.wait(0.002):
            self.peak = max(self.peak, memory())


def memory() -> int:
    """Bytes that the process has allocated."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def write_zeros(path: Path, shapes: dict[str, tuple[int, ...]]) -> int:
    """Writes a sparse file of bfloat16 zeros; returns the bytes of its largest tensor."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + end)
    return max(2 * math.prod(shape) for shape in shapes.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    _, tree = abstract_model(CONFIG, base.build(CONFIG))
    shapes = array_shapes(tree)
    total = sum(map(math.prod, shapes.values()))
    with tempfile.TemporaryDirectory() as folder:
        largest = write_zeros(Path(folder) / "model.safetensors", FORCING.shapes(shapes))
        checkpoint, watch = open_checkpoint(folder), Watch()
        most, weights, name, array = 0, 0, "", None
        start = time.monotonic()
        before = watch.reset()
        for path, array in arrays(tree, checkpoint, Options(options.dtype, options.int8)):
            jax.block_until_ready(array)
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(array))
            if (beyond := watch.peak - before - size) > most:
                most, name = beyond, path
                print(f"{beyond / MIB:,.0f} MiB beyond {size / MIB:,.0f} of {path}", flush=True)
            weights += size
            del array
            before = watch.reset()
        seconds = time.monotonic() - start
        watch.stop()
    print(f"{total:,} parameters, {weights / MIB:,.0f} MiB of weights, {seconds:.0f} s")
    print(f"largest tensor of the file: {largest / MIB:,.0f} MiB")
    ratio = most / largest
    print(f"most memory beyond the weights: {most / MIB:,.0f} MiB, {ratio:.2f} of that, at {name}")


if __name__ == "__main__":
    main()
