"""What a job on files does with each of them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from modality_forcing.data.files import DepthFormat
from modality_forcing.evaluation.predictions import network_settings
from modality_forcing.inference.batches import Sampling
from modality_forcing.inference.fit import IMAGE_FIT, Fit
from modality_forcing.inference.metric import ScaleSource
from modality_forcing.inference.outputs import DEFAULT_FORMATS
from modality_forcing.inference.photos import file_version
from modality_forcing.inference.pipeline import Pipeline
from modality_forcing.inference.points import EDGE
from modality_forcing.train.state import params_hash


@dataclass(frozen=True)
class Job:
    """What is done with every file.

    Args:
      mode: i2d, d2i or partial.
      out: the folder of the results.
      sampling: the options and the seed.
      fit: how a file gets the network's size.
      captions: of each file, one result each.
      repetitions: results per caption, each of other noise.
      ensemble: samples merged into one depth map.
      formats: of `outputs.FORMATS`.
      geometry: ply or glb for point clouds and meshes, "" for none.
      fov: field of view across the longer side; None: from EXIF, else 65 degrees.
      edge: the share of depth between neighbors from which on meshes are cut.
      depth_form: how stored numbers become depth.
      scale: where measurements come from that make depth metric.
      max_errors: the fraction of files that may fail.
    """

    mode: str
    out: Path
    sampling: Sampling
    fit: Fit = IMAGE_FIT
    captions: tuple[str, ...] = ("",)
    repetitions: int = 1
    ensemble: int = 1
    formats: tuple[str, ...] = DEFAULT_FORMATS
    geometry: str = ""
    fov: float | None = None
    edge: float = EDGE
    depth_form: DepthFormat = field(default_factory=DepthFormat)
    scale: ScaleSource | None = None
    max_errors: float = 1.0

    @property
    def variants(self) -> list[str]:
        """The captions of the results of one file; a variant's noise is keyed by its number."""
        return [caption for caption in self.captions for _ in range(self.repetitions)]

    def digest(self, pipeline: Pipeline) -> str:
        """Returns a hash of all that results depend on besides the file."""
        settings = asdict(replace(self, out=Path(), scale=None, max_errors=0.0))
        if self.scale is not None:
            settings["scale"] = [str(self.scale.path), file_version(self.scale.path)]
        generator = pipeline.generator
        settings["size"], settings["weights"] = pipeline.size, params_hash(generator.params)
        settings["network"] = network_settings(generator.config)
        text = json.dumps(settings, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
