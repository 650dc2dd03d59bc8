"""A block next to the same block in plain PyTorch on a Linux CPU: forward and backward.

    python benchmarks/block.py                # torch comes with the parity extra
    python benchmarks/block.py --keep-freed   # both with an allocator that keeps freed memory
    python benchmarks/block.py --threads=1 --cpu-time   # on a shared machine

Gradients are of the input, the modulation and every weight, in float32. Outputs and gradients must
agree before anything is timed. The two alternate, so that other load disturbs both alike; the first
call of a turn is not timed. One row per shape: median and fastest milliseconds of each, and torch's
median over ours: above 1, ours is faster.

With more busy threads than cores, torch's threads wait for each other and its times mean nothing:
check the load that is printed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from flax import nnx

from modality_forcing.allocator import keep_freed_memory
from modality_forcing.config import ModelConfig
from modality_forcing.models.blocks import Stack
from modality_forcing.models.presets import size
from modality_forcing.models.rope import rotary_angles, text_positions

EPS = 1e-6  # of the norms
Arrays = dict[str, np.ndarray]
Run = Callable[[], object]


@dataclass(frozen=True)
class Case:
    name: str
    model: ModelConfig
    batch: int
    lengths: tuple[int, ...]  # tokens under each row of the modulation: text, image, depth

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


def narrow(kv_heads: int) -> ModelConfig:
    return ModelConfig(
        width=64,
        mlp_dim=192,
        num_layers=1,
        heads=4,
        kv_heads=kv_heads,
        head_dim=16,
        attention="einsum",
    )


CASES = (
    Case("width 64, 4 heads", narrow(4), 64, (9, 128)),
    Case("width 64, 2 kv heads", narrow(2), 64, (9, 128)),
    Case("demo, image", size("demo"), 16, (12, 16)),
    Case("demo, image + depth", size("demo"), 16, (12, 16, 16)),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Our block beside plain PyTorch, forward and backward on the CPU."
    )
    parser.add_argument("--rounds", type=int, default=40, help="timed calls of each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--keep-freed",
        action="store_true",
        help="keep freed memory instead of returning it to the system",
    )
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="the process's CPU time; with one thread, as idle ones may spin",
    )
    options = parser.parse_args()
    if options.cpu_time and options.threads != 1:
        parser.error("--cpu-time needs --threads=1")
    cores = sorted(os.sched_getaffinity(0))[: options.threads]
    os.sched_setaffinity(0, cores)  # sets the size of XLA's thread pool
    torch.set_num_threads(len(cores))
    jax.config.update("jax_platforms", "cpu")
    if options.keep_freed:
        keep_freed_memory()

    kept = "kept" if options.keep_freed else "returned to the system"
    clock, unit = (
        (time.process_time, "ms of CPU") if options.cpu_time else (time.perf_counter, "ms")
    )
    versions = f"jax {jax.__version__}, torch {torch.__version__}"
    print(f"{versions}, threads: {len(cores)}, freed memory {kept}; {unit}")
    print(f"load before: {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores")
    times = f"{'torch':>9}{'best':>8}{'ours':>9}{'best':>8}{'ratio':>8}  differ"
    print(f"{'':<22}{'batch':>6}{'tokens':>7}{'blocks':>7}{times}")
    for case in CASES:
        inputs = draw(case)
        (theirs, expected), (ours, found) = in_torch(case, *inputs), in_jax(case, *inputs)
        error = disagreement(found, expected)
        if error > 1e-4:
            raise SystemExit(f"{case.name}: ours and torch's differ by {error:.1e}")
        a, b = take_turns((theirs, ours), options.rounds, clock)
        head = f"{case.name:<22}{case.batch:>6}{case.tokens:>7}{case.model.num_layers:>7}"
        times = "".join(f"{statistics.median(t):>9.1f}{min(t):>8.1f}" for t in (a, b))
        print(
            f"{head}{times}{statistics.median(a) / statistics.median(b):>8.2f}  {error:.0e}",
            flush=True,
        )


def take_turns(runs: tuple[Run, ...], rounds: int, clock: Callable[[], float]) -> list[list[float]]:
    """Returns milliseconds of each round, per run."""
    times = [[] for _ in runs]
    for _ in range(rounds):
        for run, mine in zip(runs, times, strict=True):
            run()  # caches are the other's, and its threads may still spin
            start = clock()
            run()
            mine.append(1e3 * (clock() - start))
    return times


def draw(case: Case) -> tuple[Arrays, Arrays]:
    """Returns weights, stacked over blocks, and arrays x, modulation, angles, dy."""
    c, random = case.model, np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    stack = nnx.to_pure_dict(nnx.state(Stack(c, c.num_layers, rngs=nnx.Rngs(0))))["layers"]
    # None at its neutral value.
    weights = {name: np.asarray(w) + 0.1 * normal(*w.shape) for name, w in stack.items()}
    x, dy = (normal(case.batch, case.tokens, c.width) for _ in range(2))
    levels = 0.3 * normal(case.batch, len(case.lengths), 3 * c.width)
    angles = rotary_angles(text_positions(case.tokens), c.head_dim, c.rope_theta)
    return weights, {"x": x, "levels": levels, "angles": angles, "dy": dy}


def in_jax(case: Case, weights: Arrays, arrays: Arrays) -> tuple[Run, Arrays]:
    """Returns a call of forward and backward, and its results: y, and gradients by name."""
    c = case.model
    graph, state = nnx.split(Stack(c, c.num_layers, rngs=nnx.Rngs(0)))
    nnx.replace_by_pure_dict(state, {"layers": {n: jnp.asarray(w) for n, w in weights.items()}})
    begins = tuple(int(begin) for begin in np.cumsum((0, *case.lengths[:-1])))

    @jax.jit
    def both(state, x, levels, angles, dy):
        y, back = jax.vjp(
            lambda state, x, levels: nnx.merge(graph, state)(x, levels, begins, angles),
            state,
            x,
            levels,
        )
        return y, back(dy)

    given = [jnp.asarray(arrays[name]) for name in ("x", "levels", "angles", "dy")]
    y, (of_state, of_x, of_levels) = both(state, *given)
    found = nnx.to_pure_dict(of_state)["layers"] | {"y": y, "x": of_x, "levels": of_levels}
    return lambda: jax.block_until_ready(both(state, *given)), {
        n: np.asarray(a) for n, a in found.items()
    }


def in_torch(case: Case, weights: Arrays, arrays: Arrays) -> tuple[Run, Arrays]:
    """The same in PyTorch, as one would write it there without a compiler."""
    leaf = partial(torch.tensor, requires_grad=True)
    blocks = [
        {name: leaf(w[i]) for name, w in weights.items()} for i in range(case.model.num_layers)
    ]
    x, levels, dy = leaf(arrays["x"]), leaf(arrays["levels"]), torch.tensor(arrays["dy"])
    cos, sin = torch.tensor(np.cos(arrays["angles"])), torch.tensor(np.sin(arrays["angles"]))
    lengths = torch.tensor(case.lengths)
    leaves = [x, levels, *(w for block in blocks for w in block.values())]

    def both():
        modulation = levels.repeat_interleave(lengths, dim=1, output_size=case.tokens)  # [b n 3d]
        y = x
        for block in blocks:
            y = torch_block(case.model, block, y, modulation, cos, sin)
        return y, torch.autograd.grad(y, leaves, dy)

    y, (of_x, of_levels, *rest) = both()
    per_block = np.split(np.array([a.numpy() for a in rest], dtype=object), case.model.num_layers)
    found = {name: np.stack([block[i] for block in per_block]) for i, name in enumerate(weights)}
    return both, found | {"y": y.detach().numpy(), "x": of_x.numpy(), "levels": of_levels.numpy()}


def torch_block(
    c: ModelConfig,
    w: dict[str, torch.Tensor],
    x: torch.Tensor,
    modulation: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> torch.Tensor:
    b, n, d = x.shape

    def rotate(a: torch.Tensor) -> torch.Tensor:
        first, second = a.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)

    shift, scale, gate = (modulation + w["offset"]).chunk(3, dim=-1)
    y = F.rms_norm(x, (d,), eps=EPS) * (1 + scale) + shift
    q, k, v = ((y @ w[name]).view(b, n, -1, c.head_dim).transpose(1, 2) for name in "qkv")
    q = rotate(F.rms_norm(q, (c.head_dim,), w["q_scale"], EPS))
    k = rotate(F.rms_norm(k, (c.head_dim,), w["k_scale"], EPS))
    mixed = (
        F.scaled_dot_product_attention(q, k, v, enable_gqa=c.heads != c.kv_heads)
        .transpose(1, 2)
        .reshape(b, n, -1)
    )
    mixed = mixed @ w["out"] + (F.silu(y @ w["gate"]) * (y @ w["up"])) @ w["down"]
    return x + gate * F.rms_norm(mixed, (d,), eps=EPS)


def disagreement(found: Arrays, expected: Arrays) -> float:
    """Returns the largest difference of any array, relative to that array's largest value."""
    if found.keys() != expected.keys():
        raise ValueError(f"different arrays: {sorted(found)}, {sorted(expected)}")
    return max(float(np.abs(found[n] - a).max() / np.abs(a).max()) for n, a in expected.items())


if __name__ == "__main__":
    main()
