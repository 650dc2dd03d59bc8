"""Trains many recipes of the demo's post-training at once on one accelerator, and scores each.

    python benchmarks/demo_recipes.py dense=0 dense=0.5 dense=0.75 dense=1,t_min_depth=1
    python benchmarks/demo_recipes.py --world=varied --out=recipes.json dense=0.75 dense=1

Recipes differ in numbers alone, so that one compiled step trains all of them: `jax.vmap` over the
recipes. Scenes are rendered once, each with two sparse maps; batches and noise are the same for
all. The scores are ratios: i2d over the best constant, d2i over another scene's image (`following`,
by guidance of the text and of the depth), joint over the best constant.

docs/demo.md has the table; `Recipe` lists what may differ.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import multiprocessing
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jax.scipy.special import ndtri

from modality_forcing import config_file
from modality_forcing.config import Config
from modality_forcing.data.sparsity import sparsify
from modality_forcing.diffusion import flow, losses, trajectories
from modality_forcing.diffusion.noise_levels import PlateauLogitNormal
from modality_forcing.encoders.words import HashedWordTokenizer
from modality_forcing.evaluation.depth_metrics import constant_scores, score
from modality_forcing.modalities import base
from modality_forcing.models.dit import DiT
from modality_forcing.progress import format_table
from modality_forcing.synthetic.source import Scenes
from modality_forcing.train.optim import make_optimizer

CHUNK = 250  # steps of one call
GUIDANCE = ((2.0, 1.0), (2.0, 2.0), (2.0, 3.0))  # of the text and of the depth
PARTS = 64  # jobs of rendering
Data = dict[str, np.ndarray]
Batch = dict[str, Array]


@dataclass(frozen=True)
class Recipe:
    """What may differ; the defaults are the demo's before this search."""

    dense: float = 0.0  # share of dense maps
    cond_image: float = 0.45
    cond_depth: float = 0.15
    t_min_image: float = 0.3  # both phases
    t_min_depth: float = 0.3
    shift_image: float = 0.0  # both phases
    shift_given: float = 0.0  # of the image's noise where depth is given
    loss_weight: float = 1.5  # of depth
    learning_rate: float = 3e-3  # both phases

    @property
    def pretraining(self) -> Recipe:
        return Recipe(
            t_min_image=self.t_min_image,
            shift_image=self.shift_image,
            learning_rate=self.learning_rate,
        )


def render(world: str, split: str, start: int, stop: int) -> list[np.ndarray]:
    scenes = Scenes(count=stop, resolution=32, split=split, world=world)
    encode, rows = HashedWordTokenizer().encode, []
    for i in range(start, stop):
        record, rng, text = scenes[i], np.random.default_rng((i, 7)), encode(scenes[i].caption)
        sparse = [sparsify(record, rng).valid for _ in range(2)]
        rows.append(
            (record.image, record.depth, record.valid, sparse, text["tokens"], text["mask"])
        )
    return [np.stack(column) for column in zip(*rows, strict=True)]


def render_all(world: str, split: str, count: int) -> Data:
    step = max(count // PARTS, 8)
    jobs = [(world, split, at, min(at + step, count)) for at in range(0, count, step)]
    with multiprocessing.get_context("spawn").Pool() as pool:
        parts = pool.starmap(render, jobs, chunksize=1)
    names = ("image", "depth", "valid", "sparse", "tokens", "mask")
    return dict(zip(names, map(np.concatenate, zip(*parts, strict=True)), strict=True))


class Search:
    """The step and the sampler of all recipes."""

    def __init__(self, config: Config, recipes: list[Recipe], train: Data):
        self.config, self.recipes, self.modalities = config, recipes, base.build(config)
        self.data = jax.device_put(train)
        model = DiT(config.model, config.text, self.modalities, rngs=nnx.Rngs(config.seed))
        self.graph, params = nnx.split(model)
        self.initial = nnx.to_pure_dict(params)
        self.null = {"tokens": jnp.zeros(12, jnp.int32), "mask": jnp.zeros(12, bool)}
        self.plateau = PlateauLogitNormal(config.modalities["depth"].noise.timestep_shift)

    def model(self, params: Any, x: Mapping, t: Mapping, text: Mapping) -> dict[str, Array]:
        return nnx.merge(self.graph, params)(x, t, text)

    def tokens(self, batch: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
        return {name: m.to_tokens(batch) for name, m in self.modalities.items()}

    def loss(self, params: Any, k: Mapping, batch: Batch, key: Array, phase: str) -> Array:
        """k: a recipe's numbers. Equals train/step.py's loss, with a t_min for each modality."""
        b = len(batch["image"])
        keys = jax.random.split(key, 7)
        u = [jax.random.uniform(one, (b,), minval=1e-6, maxval=1 - 1e-6) for one in keys[:5]]
        dense = (u[0] < k["dense"])[:, None, None]
        x0 = self.tokens(batch | {"valid": jnp.where(dense, batch["valid"], batch["sparse"])})
        image_given = u[1] < k["cond_image"]
        depth_given = ~image_given & (u[1] < k["cond_image"] + k["cond_depth"])
        if phase == "t2i":
            image_given = depth_given = jnp.zeros(b, bool)
        shift = jnp.where(depth_given, k["shift_given"], k["shift_image"])
        given = {"image": image_given, "depth": depth_given}
        t = {"image": jax.nn.sigmoid(shift + ndtri(u[2])), "depth": self.plateau.icdf(u[3])}
        t = {name: jnp.where(given[name], 0.0, t[name]) for name in t}
        names = ("image",) if phase == "t2i" else ("image", "depth")
        eps = {n: jax.random.normal(keys[5 + i], x0[n][0].shape) for i, n in enumerate(names)}
        x_t = {n: flow.add_noise(x0[n][0], eps[n], t[n], x0[n][1]) for n in names}
        dropped = (u[4] < 0.1)[:, None]
        text = {n: jnp.where(dropped, null, batch[n]) for n, null in self.null.items()}
        out = self.model(params, x_t, {n: t[n] for n in names}, text)
        total = jnp.zeros(())
        for n in names:
            clean, mask = x0[n]
            velocity = jnp.maximum(t[n], k[f"t_min_{n}"])[:, None, None]
            error = (out[n] - jnp.where(mask, clean, 0)) / velocity
            each = losses.masked_mean(jnp.square(error), mask & ~given[n][:, None, None])
            total += jnp.mean(each) * (k["loss_weight"] if n == "depth" else 1.0)
        return total

    def train(self, phase: str, recipes: list[Recipe], params: Any) -> Any:
        """Returns the averaged weights, [r ...], from initial ones, [r ...]."""
        c = config_file.load(f"demo:phase={phase}").train
        # The learning rate differs by recipe: it scales the update of one of 1.
        optimizer = optax.with_extra_args_support(
            make_optimizer(replace(c, learning_rate=1.0, base_width=0), self.config.model.width)
        )
        fields = [f.name for f in dataclasses.fields(Recipe)]
        knobs = {n: jnp.array([getattr(r, n) for r in recipes], jnp.float32) for n in fields}

        def update(params, state, ema, k, batch, key, i):
            loss, grads = jax.value_and_grad(self.loss)(params, k, batch, key, phase)
            seen = {"loss": loss, "grad_norm": optax.global_norm(grads)}
            updates, state = optimizer.update(grads, state, params, **seen)
            params = jax.tree.map(lambda p, d: p + k["learning_rate"] * d, params, updates)
            decay = jnp.minimum(c.ema_decay, (1.0 + i) / (10.0 + i))
            ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, ema, params)
            return params, state, ema, loss

        def step(carry, i):
            key = jax.random.fold_in(jax.random.key(1 + (phase == "t2i")), i)
            pick, which, noise = jax.random.split(key, 3)
            index = jax.random.randint(pick, (c.batch,), 0, len(self.data["image"]))
            batch = {name: values[index] for name, values in self.data.items()}
            first = jax.random.bernoulli(which, 0.5, (c.batch, 1, 1))
            batch["sparse"] = jnp.where(first, batch["sparse"][:, 0], batch["sparse"][:, 1])
            each = (0, 0, 0, 0, None, None, None)
            params, state, ema = carry
            *carry, loss = jax.vmap(update, each)(params, state, ema, knobs, batch, noise, i)
            return tuple(carry), loss

        chunk = jax.jit(
            lambda carry, start: jax.lax.scan(step, carry, start + jnp.arange(CHUNK)),
            donate_argnums=0,
        )
        carry = params, jax.vmap(optimizer.init)(params), jax.tree.map(jnp.array, params)
        for start in range(0, c.steps, CHUNK):
            carry, loss = chunk(carry, jnp.int32(start))
            log(phase, start + CHUNK, np.round(np.asarray(loss.mean(0))[:8], 3))
        return carry[2]

    def run(self) -> Any:
        """Returns the weights of all recipes; equal pretraining is done once."""
        before = list(dict.fromkeys(r.pretraining for r in self.recipes))
        many = jax.tree.map(lambda x: jnp.tile(x[None], (len(before), *[1] * x.ndim)), self.initial)
        pretrained = self.train("t2i", before, many)
        which = jnp.array([before.index(r.pretraining) for r in self.recipes])
        start = jax.tree.map(lambda x: x[which], pretrained)
        return self.train("forcing", self.recipes, start)

    def sampler(self, held_out: Data) -> Callable:
        """Returns (weights [r ...], schedules, images' tokens [r b n c], guidance of the text, and
        of what is given) -> images [r b h w 3] and depth [r b h w], by Euler's method.
        """
        count = len(held_out["image"])
        x0 = self.tokens(jax.device_put(held_out))
        text = {name: jnp.asarray(held_out[name]) for name in self.null}
        empty = {name: jnp.tile(null[None], (count, 1)) for name, null in self.null.items()}
        keys = {"image": jax.random.key(11), "depth": jax.random.key(12)}
        noise = {n: jax.random.normal(key, x0[n][0].shape) for n, key in keys.items()}

        def sample(params, schedule, image, by_text, by_given):
            depth = jnp.where(x0["depth"][1], x0["depth"][0], noise["depth"])
            given = {n: levels[0] == 0 for n, levels in schedule.items()}
            clean = {"image": image, "depth": depth}
            start = {n: jnp.where(given[n], clean[n], noise[n]) for n in clean}

            def step(x, i):
                t = {n: jnp.full(count, levels[i]) for n, levels in schedule.items()}
                without = {n: jnp.where(given[n], noise[n], x[n]) for n in x}
                t_without = {n: jnp.where(given[n], 1.0, t[n]) for n in t}
                inputs = ((x, t, text), (x, t, empty), (without, t_without, text))
                out = self.model(
                    params, *jax.tree.map(lambda *parts: jnp.concatenate(parts), *inputs)
                )
                moved = {}
                for n in x:
                    full, no_text, no_given = jnp.split(out[n], 3)
                    scale = by_text if n == "image" else 1.0
                    y = no_text + scale * (full - no_text) + (by_given - 1) * (full - no_given)
                    now, after = schedule[n][i], schedule[n][i + 1]
                    new = x[n] + (now - after) * (y - x[n]) / jnp.maximum(now, 1e-3)
                    moved[n] = jnp.where(now == 0, x[n], jnp.where(after == 0, y, new))
                return moved, None

            steps = len(schedule["image"]) - 1
            x, _ = jax.lax.scan(step, start, jnp.arange(steps))
            return tuple(self.modalities[n].from_tokens(x[n]) for n in ("image", "depth"))

        sampled = jax.jit(jax.vmap(sample, in_axes=(0, None, 0, None, None)))
        tiled = jnp.tile(x0["image"][0][None], (len(self.recipes), 1, 1, 1))

        def call(params, image_t, depth_t, image=None, by_text=1.0, by_given=1.0):
            schedule = {"image": jnp.float32(image_t), "depth": jnp.float32(depth_t)}
            image = tiled if image is None else image
            return map(np.asarray, sampled(params, schedule, image, by_text, by_given))

        return call


def scores(search: Search, params: Any, held_out: Data, steps: int) -> list[dict[str, float]]:
    many = len(search.recipes)
    sample = search.sampler(held_out)
    zero, one = np.zeros(steps + 1), np.r_[1.0, np.zeros(steps)]
    levels = trajectories.timesteps(steps)
    shape = (-1, *held_out["depth"].shape[1:])
    target, valid = (np.tile(held_out[n][None], (many, 1, 1, 1)) for n in ("depth", "valid"))

    def absrel(pred: np.ndarray, target=target, valid=valid) -> np.ndarray:
        pred, target, valid = (np.asarray(x).reshape(shape) for x in (pred, target, valid))
        return np.nanmean(score(pred, target, valid).absrel.reshape(many, -1), axis=1)

    def constant(target, valid) -> np.ndarray:
        target, valid = (np.asarray(x).reshape(shape) for x in (target, valid))
        return np.nanmean(constant_scores(target, valid).absrel.reshape(many, -1), axis=1)

    def judge(images: np.ndarray) -> np.ndarray:
        pixels = jnp.round(jnp.asarray(images) * 255).astype(jnp.uint8)
        encode = search.modalities["image"].to_tokens
        return list(sample(params, zero, one, jax.vmap(lambda x: encode({"image": x})[0])(pixels)))[
            1
        ]

    _, depth = sample(params, zero, one)
    columns = {"i2d": absrel(depth) / constant(target, valid)}
    _, depth_of_many = sample(params, zero, levels)
    columns["10 steps / 1"] = absrel(depth_of_many) / absrel(depth)
    for by_text, by_given in GUIDANCE:
        image, _ = sample(params, levels, zero, by_text=by_text, by_given=by_given)
        seen = judge(image)
        columns[f"following, {by_given:g}"] = absrel(seen) / absrel(np.roll(seen, 1, axis=1))
    tilted = np.asarray(trajectories.tilt(levels, 2.0**5))
    image, depth = sample(params, levels, tilted, by_text=2.0)
    everywhere = np.ones_like(valid)
    columns["joint"] = absrel(judge(image), depth, everywhere) / constant(depth, everywhere)
    return [{n: float(values[i]) for n, values in columns.items()} for i in range(many)]


def log(*words: object) -> None:
    print(f"{time.strftime('%H:%M:%S')}", *words, flush=True)


def parse_recipe(text: str) -> Recipe:
    pairs = (item.split("=") for item in text.split(",") if item)
    return Recipe(**{name: float(value) for name, value in pairs})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipes", nargs="+", type=parse_recipe, metavar="NAME=NUMBER,...")
    parser.add_argument("--world", default="plain")
    parser.add_argument("--scenes", type=int, default=32_768)
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--out", type=Path, help="also as JSON, with the weights beside it, .npz")
    options = parser.parse_args()
    config = config_file.load("demo:phase=forcing")
    train = render_all(options.world, "train", options.scenes)
    held_out = render_all(options.world, "eval", options.examples)
    log("rendered", len(train["image"]))
    search = Search(config, options.recipes, train)
    params = search.run()
    if options.out:  # before the scores, which take a second compilation
        leaves, _ = jax.tree_util.tree_flatten_with_path(params)
        names = {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}
        with options.out.with_suffix(".npz").open("wb") as file:
            np.savez(file, allow_pickle=False, **names)
    rows = scores(search, params, held_out, config.sample.steps)
    names = [",".join(_changes(recipe)) or "default" for recipe in options.recipes]
    if options.out:
        table = dict(zip(names, rows, strict=True))
        options.out.write_text(json.dumps(table, indent=1))
    cells = [[n, *(f"{x:.3f}" for x in row.values())] for n, row in zip(names, rows, strict=True)]
    print(format_table(cells, ["recipe", *rows[0]]))


def _changes(recipe: Recipe) -> list[str]:
    fields = dataclasses.asdict(recipe)
    default = functools.partial(getattr, Recipe())
    return [f"{name}={value:g}" for name, value in fields.items() if value != default(name)]


if __name__ == "__main__":
    main()
