"""Writes data/image_distances.npz: torch-fidelity's FID and KID of random features.

    python -m tests.parity.make_image_distance_goldens

Needs the extra fid (torch-fidelity 0.4).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

DATA = Path(__file__).parent / "data"
KID_SUBSET = 20


def main() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(12, 12))
    a = (np.abs(rng.normal(size=(48, 12))) @ mixing).astype(np.float32)
    b = (np.abs(rng.normal(0.3, 1.2, (36, 12))) @ mixing).astype(np.float32)
    features = [torch.from_numpy(x) for x in (a, b)]
    fid = fid_statistics_to_metric(*map(fid_features_to_statistics, features), verbose=False)
    kid = kid_features_to_metric(*features, kid_subset_size=KID_SUBSET, verbose=False)
    np.savez_compressed(
        DATA / "image_distances.npz",
        a=a,
        b=b,
        kid_subset=KID_SUBSET,
        fid=next(iter(fid.values())),
        kid=np.array([*kid.values()]),
    )


if __name__ == "__main__":
    main()
