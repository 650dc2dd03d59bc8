"""Images to FID, KID and CLIP features with random weights: equal to the libraries' own numbers.

Needs the extra fid. torch-fidelity 0.4 also installs a package named `tests`, which must be removed
for this repository's tests to be found.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modality_forcing.errors import UserError
from modality_forcing.evaluation.image_features import open_features
from modality_forcing.evaluation.image_quality import compare_folders, open_metrics

torch = pytest.importorskip("torch")
torch_fidelity = pytest.importorskip("torch_fidelity")
transformers = pytest.importorskip("transformers")


class Untrained(torch_fidelity.FeatureExtractorInceptionV3):
    """The network with random weights, which keep the size of features."""

    def load_state_dict(self, *args, **kwargs):
        generator = torch.Generator().manual_seed(0)
        for module in self.modules():
            if isinstance(module, torch.nn.Conv2d):
                scale = (2 / module.weight[0].numel()) ** 0.5
                noise = torch.randn(module.weight.shape, generator=generator)
                module.weight.data.copy_(scale * noise)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two folders of images, and the weights in both formats."""
    root, nothing = tmp_path_factory.mktemp("fid"), io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    network = Untrained("untrained", ["2048"], feature_extractor_weights_path=nothing)
    state = {name: x.contiguous() for name, x in network.state_dict().items()}
    torch.save(state, root / "inception.pth")
    from safetensors.torch import save_file

    save_file(state, root / "inception.safetensors")
    rng = np.random.default_rng(0)
    for name, count, shift in (("a", 12, 0), ("b", 10, 40)):
        (root / name).mkdir()
        for i in range(count):
            pixels = (rng.integers(0, 200, (40, 56, 3)) + shift).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:02d}.png")
    return root


@pytest.mark.slow
def test_fid_and_kid_are_those_of_torch_fidelity(folder: Path):
    expected = torch_fidelity.calculate_metrics(
        input1=str(folder / "a"),
        input2=str(folder / "b"),
        fid=True,
        kid=True,
        kid_subset_size=8,
        cuda=False,
        cache=False,
        verbose=False,
        feature_extractor_weights_path=str(folder / "inception.pth"),
    )
    metrics = open_metrics("fid,kid", str(folder / "inception.safetensors"), kid_subset=8)
    found = compare_folders(folder / "a", folder / "b", metrics)["metrics"]
    assert found["fid"] > 0.1
    assert found["fid"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-6)
    # It adds the kernel in float32.
    mean, std = (expected[f"kernel_inception_distance_{kind}"] for kind in ("mean", "std"))
    assert found["kid"] == pytest.approx(mean, rel=1e-3)
    assert found["kid_std"] == pytest.approx(std, rel=1e-2)


def test_clip_features_are_those_of_transformers(folder: Path):
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    size |= {"num_attention_heads": 4, "image_size": 56, "patch_size": 14, "projection_dim": 24}
    network = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**size))
    network.eval().save_pretrained(folder / "clip")
    images = np.random.default_rng(0).integers(0, 256, (3, 56, 56, 3), np.uint8)
    processor = transformers.CLIPImageProcessor(do_resize=False, do_center_crop=False)
    with torch.inference_mode():
        pixels = processor(list(images), return_tensors="pt")
        expected = network(**pixels).image_embeds.numpy()
    found = open_features("clip", str(folder / "clip"))(images)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert open_features("clip", str(folder / "clip"))(images[:, :40]).shape == (3, 24)


def test_wrong_weights_are_one_line(folder: Path):
    with pytest.raises(UserError, match=r"inception\.pth: is no safetensors file"):
        open_features("inception", str(folder / "inception.pth"))
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(2)}, folder / "other.safetensors")
    with pytest.raises(UserError, match="not the tensors of FID's Inception network"):
        open_features("inception", str(folder / "other.safetensors"))
    with pytest.raises(UserError, match="no CLIP network"):
        open_features("clip", str(folder / "a"))
