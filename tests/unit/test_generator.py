"""Generation with weights that are nowhere zero: conditions, outputs and what they depend on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from modality_forcing.diffusion.trajectories import resolution_shift, timesteps
from modality_forcing.errors import UserError
from modality_forcing.export import job
from modality_forcing.generator import Generator, override_sampling
from modality_forcing.tasks import TASKS
from modality_forcing.train import checkpoint
from tests import runs, tiny


@pytest.fixture(scope="module")
def generator() -> Generator:
    config = tiny.forcing()
    return Generator(config, tiny.network(config)[1])


@pytest.fixture(scope="module")
def inputs() -> dict[str, np.ndarray]:
    batch = tiny.batch(tiny.forcing(), b=3)
    return {name: batch[name] for name in ("image", "depth", "valid")}


CAPTIONS = ["a red ball", "", "two boxes"]


def test_trajectory_of_each_task_has_its_condition_and_order(generator: Generator):
    options = replace(generator.config.sample, log2_alpha=3.0)
    for task, given in TASKS.items():
        trajectory, cond = generator.trajectory(task, options)
        assert cond == given and trajectory.steps == 4
        assert set(trajectory.schedule) == ({"image"} if task == "t2i" else {"image", "depth"})
    joint, _ = generator.trajectory("joint", options)
    assert (
        np.all(joint.schedule["image"] <= joint.schedule["depth"])
        and joint.schedule["image"][2] < joint.schedule["depth"][2]
    )
    depth_first, _ = generator.trajectory("joint", replace(options, log2_alpha=-3.0))
    assert depth_first.schedule["depth"][2] < depth_first.schedule["image"][2]
    # Depth does not pass through levels that training hardly saw.
    early, _ = generator.trajectory("joint", replace(options, log2_alpha=-12.0))
    least = generator.modalities["depth"].least_level
    assert early.schedule["depth"].tolist() == pytest.approx([1, least, least, least, 0])
    tight, _ = generator.trajectory("partial", replace(options, log2_alpha=-12.0))
    assert tight.schedule["depth"].tolist() == [1, 0, 0, 0, 0]
    for task, given in (("i2d", "image"), ("d2i", "depth")):
        assert not generator.trajectory(task, options)[0].schedule[given].any()


def test_wrong_batches_are_one_line(generator: Generator, inputs):
    with pytest.raises(UserError, match="image is given, but the batch has no 'image'; add image"):
        generator.run("i2d", CAPTIONS)
    with pytest.raises(UserError, match="no 'valid'; add depth, valid"):
        generator.run("d2i", CAPTIONS, batch={"depth": inputs["depth"]})
    shape = r"'image' .* shape \(3, 5, .*; it must be \(3, \d+, \d+, 3\)"
    with pytest.raises(UserError, match=shape):
        generator.run("i2d", CAPTIONS, batch={"image": inputs["image"][:, :5]})
    with pytest.raises(UserError, match=r"'image' .* for 2 captions; it must be \(2, "):
        generator.run("i2d", CAPTIONS[:2], batch=inputs)


def test_text_encoder_is_freed_before_sampling(generator: Generator, monkeypatch):
    """And used once: a second pass reads the same states."""
    order = []

    def spy(owner: object, name: str) -> None:
        call = getattr(owner, name)

        def called(*args, **kwargs):
            order.append(name)
            return call(*args, **kwargs)

        monkeypatch.setattr(owner, name, called)

    spy(generator, "encode_text")
    spy(generator, "_run_sampler")
    spy(generator.frozen, "free_text")
    generator.run("joint", CAPTIONS, refine=True, free_text=True)
    assert order == ["encode_text", "free_text", "_run_sampler", "_run_sampler"]
    generator.run("joint", CAPTIONS)
    assert order[4:] == ["encode_text", "_run_sampler"]


def test_model_of_one_modality_does_only_t2i():
    one = Generator(tiny.t2i(), tiny.network(tiny.t2i())[1])
    assert generator_makes(one, "t2i") == {"image"}
    for task, needs in {
        "joint": "a second modality",
        "i2d": "a second modality",
        "d2i": "depth",
        "partial": "depth",
    }.items():
        with pytest.raises(
            UserError, match=rf"mode {task} needs {needs}, this network has image only"
        ):
            one.run(task, [""])
    with pytest.raises(UserError, match="unknown mode 'i2i'"):
        one.trajectory("i2i", one.config.sample)


def generator_makes(generator: Generator, task: str) -> set[str]:
    return set(generator.run(task, ["a"]).images)


def test_example_does_not_depend_on_the_rest_of_its_batch(generator: Generator, inputs):
    three = generator.run("i2d", CAPTIONS, batch={"image": inputs["image"]}, seed=5)
    last = generator.run(
        "i2d", CAPTIONS[2:], batch={"image": inputs["image"][2:]}, seed=5, index=np.array([2])
    )
    for name in ("image", "depth"):
        np.testing.assert_allclose(
            last.images[name][0], three.images[name][2], rtol=1e-4, atol=1e-5
        )
    other = generator.run(
        "i2d", CAPTIONS[2:], batch={"image": inputs["image"][2:]}, seed=5, index=np.array([0])
    )
    assert np.abs(other.tokens["depth"] - last.tokens["depth"]).max() > 1e-2


def test_same_seed_gives_same_images(generator: Generator):
    first, again, other = (generator.run("joint", CAPTIONS, seed=seed) for seed in (1, 1, 2))
    for name in ("image", "depth"):
        np.testing.assert_array_equal(first.images[name], again.images[name])
        assert np.abs(first.tokens[name] - other.tokens[name]).max() > 1e-2
    assert first.images["image"].shape == (3, 16, 16, 3) and first.images["depth"].shape == (
        3,
        16,
        16,
    )
    assert (
        first.images["image"].min() >= 0
        and first.images["image"].max() <= 1
        and first.images["depth"].min() > 0
    )


def test_condition_is_returned_unchanged(generator: Generator, inputs):
    made = generator.run("i2d", CAPTIONS, batch={"image": inputs["image"]})
    np.testing.assert_allclose(made.images["image"], inputs["image"] / 255.0, atol=1e-5)


def test_captions_and_guidance_change_the_images(generator: Generator):
    plain = generator.run("joint", CAPTIONS)
    said = generator.run("joint", ["a blue cone", *CAPTIONS[1:]])
    difference = np.abs(said.tokens["image"] - plain.tokens["image"]).max(axis=(1, 2))
    assert difference[0] > 1e-3 and difference[1:].max() < 1e-4
    guided = generator.run(
        "joint", CAPTIONS, options=replace(generator.config.sample, guidance={"image": 3.0})
    )
    difference = np.abs(guided.tokens["image"] - plain.tokens["image"]).max(axis=(1, 2))
    assert difference[0] > 1e-3 and difference[1] < 1e-3, (
        "the empty caption has nothing to be guided to"
    )


def test_condition_guidance_weighs_what_is_given(generator: Generator, inputs):
    def made(task: str, weights: dict[str, float], **options):
        chosen = replace(generator.config.sample, condition_guidance=weights)
        given = {} if task == "joint" else inputs
        return generator.run(task, CAPTIONS, batch=given, options=chosen, **options).tokens

    one, three = (made("d2i", weights) for weights in ({}, {"depth": 3.0}))
    np.testing.assert_array_equal(three["depth"], one["depth"])
    assert np.abs(three["image"] - one["image"]).max() > 1e-3
    plain, guided = (made("joint", w, refine=True) for w in ({}, {"image": 3.0}))
    np.testing.assert_allclose(guided["image"], plain["image"], atol=1e-6)
    assert np.abs(guided["depth"] - plain["depth"]).max() > 1e-3  # of the second pass


def test_invalid_depth_is_not_read(generator: Generator, inputs):
    changed = np.where(inputs["valid"], inputs["depth"], 1e3).astype(np.float32)
    one = generator.run("d2i", CAPTIONS, batch={"depth": inputs["depth"], "valid": inputs["valid"]})
    other = generator.run("d2i", CAPTIONS, batch={"depth": changed, "valid": inputs["valid"]})
    np.testing.assert_array_equal(one.images["image"], other.images["image"])


def test_refine_generates_depth_again_from_the_image(generator: Generator):
    plain = generator.run("joint", CAPTIONS)
    refined = generator.run("joint", CAPTIONS, refine=True)
    np.testing.assert_allclose(refined.tokens["image"], plain.tokens["image"], atol=1e-6)
    assert np.abs(refined.tokens["depth"] - plain.tokens["depth"]).max() > 1e-3


def test_flux2_network_generates_at_another_size_and_with_its_own_shift():
    config = tiny.flux2()
    wide = Generator(config, tiny.network(config)[1], size=(16, 32))
    images = wide.run("joint", ["a red ball"], seed=1).images
    assert images["image"].shape == (1, 16, 32, 3) and images["depth"].shape == (1, 16, 32)
    options = replace(config.sample, shift_rule="flux2")
    assert wide.shift("t2i", options) == resolution_shift(8, 4)
    levels = wide.trajectory("t2i", options)[0].schedule["image"]
    np.testing.assert_array_equal(levels, timesteps(4, resolution_shift(8, 4)))


def test_heads_of_conditions_are_not_computed(generator: Generator, inputs, monkeypatch):
    """XLA drops them: the program of i2d has no image head, that of d2i no depth decoder."""
    products = {}
    compiled = generator._sample

    def count(*args, **options):
        text = compiled.lower(*args, **options).compile().as_text()
        products[task] = text.count(" dot(")
        return compiled(*args, **options)

    monkeypatch.setattr(generator, "_sample", count)
    for task in ("joint", "i2d", "d2i"):
        generator.run(task, CAPTIONS, batch=inputs)
    # In the loop and in the last step: modulation and linear map of the head.
    assert products["i2d"] == products["joint"] - 2 * 2
    assert products["d2i"] < products["i2d"] - 2 * 2


def test_override_sampling_keeps_values_that_are_none(generator: Generator):
    c = generator.config
    assert override_sampling(c) == c.sample
    changed = override_sampling(c, steps=2, solver="heun", guidance=None)
    assert changed == replace(c.sample, steps=2, task_steps={}, solver="heun")
    with pytest.raises(UserError, match="steps is 0"):
        override_sampling(c, steps=0)


def test_sampling_does_not_take_the_clamp_of_the_loss(generator: Generator, monkeypatch):
    seen = []

    def record(*args, shapes, t_min, **options):
        seen.append(t_min)
        return {name: jnp.zeros((1, *shape)) for name, shape in shapes.items()}

    monkeypatch.setattr("modality_forcing.generator.sample", record)
    c = generator.config
    trained = Generator(replace(c, train=replace(c.train, t_min=0.3)), generator.params)
    trained.run("joint", [""])
    trained.run("joint", [""], options=replace(c.sample, t_min=0.05))
    assert seen == [0.001, 0.05]


def test_changing_noise_levels_compiles_nothing(generator: Generator):
    generator.run("joint", CAPTIONS)
    compiled = generator._sample._cache_size()
    options = override_sampling(generator.config, log2_alpha=-2.0, timestep_shift=0.3)
    generator.run("joint", CAPTIONS, options=options)
    assert generator._sample._cache_size() == compiled


def test_samples_of_one_example_differ_and_are_repeatable(generator: Generator, inputs):
    image = {"image": inputs["image"]}
    first, again, second = (
        generator.run("i2d", CAPTIONS, batch=image, sample_index=k).images["depth"]
        for k in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_array_equal(
        generator.run("i2d", CAPTIONS, batch=image).images["depth"], first
    )


def test_from_checkpoint_loads_the_ema_weights(forcing_run: Path, generator: Generator):
    loaded = Generator.from_checkpoint(forcing_run)
    assert loaded.config == generator.config and list(loaded.modalities) == ["image", "depth"]
    flat = {str(path): leaf for path, leaf in jax_leaves(generator.params)}
    assert {str(path) for path, _ in jax_leaves(loaded.params)} == set(flat)
    for path, leaf in jax_leaves(loaded.params):
        np.testing.assert_array_equal(leaf, flat[str(path)])


def jax_leaves(tree):
    import jax

    return jax.tree_util.tree_leaves_with_path(tree)


def test_adapter_of_a_run_without_encoders_takes_those_of_its_base(tmp_path, monkeypatch):
    text = replace(tiny.TEXT, vocab_size=0)
    config = replace(tiny.t2i(lora_rank=2), text=text)
    run = runs.save(tmp_path / "run", config)
    adapter = job.export(run, tmp_path / "adapter", "safetensors", adapter=True)
    named = replace(tiny.t2i(), text=replace(text, encoder="umt5:here"))
    weights = checkpoint.load_unmerged(run)[2]
    base_run = runs.save(tmp_path / "base", named, weights)
    build = "modality_forcing.train.inputs.build_encoders"
    monkeypatch.setattr(build, lambda config, mesh: config.text.encoder)
    generator = Generator.from_checkpoint(base_run, adapter=adapter)
    assert generator.frozen == "umt5:here" and generator.config.name == config.name


def test_third_modality_is_given_or_made_in_any_combination():
    config = tiny.normals()
    three = Generator(config, tiny.network(config)[1])
    everything = set(three.modalities)
    for task, cond in {"d2n": ("depth",), "partial": ("depth",), "i2dn": ("image",)}.items():
        trajectory, found = three.trajectory(task)
        assert found == cond and set(trajectory.schedule) == everything
    batch = tiny.batch(config, b=2)
    made = three.run("in2d", ["", "a ball"], batch=batch)
    assert set(made.images) == everything and made.images["normals"].shape == (2, 16, 16, 3)
    for name in ("image", "normals"):
        m = three.modalities[name]
        x0, mask = m.to_tokens({k: jnp.asarray(batch[k]) for k in m.inputs})
        # To rounding: the generator compiles what makes tokens.
        np.testing.assert_allclose(made.tokens[name][mask], x0[mask], atol=1e-6)
