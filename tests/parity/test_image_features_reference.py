"""FID, KID, CLIP features and CLIP score with random weights: equal to the libraries' own numbers.

Needs the extra fid. torch-fidelity 0.4 also installs a package named `tests`, which must be removed
for this repository's tests to be found.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modality_forcing.errors import UserError
from modality_forcing.evaluation.image_features import open_features, open_texts
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


def test_clip_score_is_that_of_transformers(tmp_path: Path):
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    size |= {"num_attention_heads": 4, "projection_dim": 24}
    letters = sorted("a red ball on grass".replace(" ", ""))
    names = dict.fromkeys(x + end for end in ("", "</w>") for x in letters)
    vocabulary = {x: i for i, x in enumerate([*names, "<|startoftext|>", "<|endoftext|>"])}
    ends = {"bos_token_id": len(vocabulary) - 2, "eos_token_id": len(vocabulary) - 1}
    text = {**size, "vocab_size": len(vocabulary), "max_position_embeddings": 12, **ends}
    vision = {**size, "image_size": 56, "patch_size": 14}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    torch.manual_seed(0)
    network = transformers.CLIPModel(config).eval()
    where = tmp_path / "clip"
    network.save_pretrained(where)
    with pytest.raises(UserError, match="the tokenizer has 2 tokens, the network 22; put"):
        open_texts(str(where))
    (where / "vocab.json").write_text(json.dumps(vocabulary))
    (where / "merges.txt").write_text("#version: 0.2\n")
    captions = ["a red ball", "", "grass", "a ball on red grass"]  # the last one is cut off
    images = np.random.default_rng(0).integers(0, 256, (4, 56, 56, 3), np.uint8)
    processor = transformers.CLIPImageProcessor(do_resize=False, do_center_crop=False)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(where)
    options = {"padding": True, "truncation": True, "max_length": 12}
    with torch.inference_mode():
        tokens = tokenizer(captions, return_tensors="pt", **options)
        output = network(**tokens, **processor(list(images), return_tensors="pt"))
        cosines = output.logits_per_image.diagonal() / network.logit_scale.exp()
    expected = float((100 * cosines.clamp(min=0)).mean())
    tower = transformers.CLIPVisionModelWithProjection(config.vision_config)
    tower.save_pretrained(tmp_path / "images_alone")
    with pytest.raises(UserError, match="no CLIP network"):
        open_texts(str(tmp_path / "images_alone"))
    metrics = open_metrics("clip_score", clip=str(where))
    assert metrics.texts is not None and expected > 0
    found = metrics.compare(metrics.extract([images]), {}, captions)
    assert found["clip_score"] == pytest.approx(expected, abs=1e-3)
    shuffled = metrics.compare(metrics.extract([images[::-1]]), {}, captions)
    assert shuffled["clip_score"] != pytest.approx(expected, abs=1e-2)


def test_wrong_weights_are_one_line(folder: Path):
    with pytest.raises(UserError, match=r"inception\.pth: is no safetensors file"):
        open_features("inception", str(folder / "inception.pth"))
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(2)}, folder / "other.safetensors")
    with pytest.raises(UserError, match="not the tensors of FID's Inception network"):
        open_features("inception", str(folder / "other.safetensors"))
    with pytest.raises(UserError, match="no CLIP network"):
        open_features("clip", str(folder / "a"))
