"""One process of a run: python -m tests.sharded.train_for WORKDIR [STOP_AFTER]."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from modality_forcing import distributed


def main(workdir: str, stop_after: str = "") -> int:
    distributed.initialize()
    import jax

    from modality_forcing.evaluation.while_training import make_evaluate
    from modality_forcing.train.loop import train
    from tests import tiny

    config = tiny.t2i(batch=8, steps=6, save_every=3, log_every=1)
    config = replace(config, model=replace(config.model, num_layers=1))
    evaluation = replace(config.eval, every=4, while_training_examples=5)
    config = replace(config, eval=evaluation)
    stop = int(stop_after) if stop_after else None
    state = train(config, Path(workdir), make_evaluate=make_evaluate, stop_after=stop)
    norm = jax.jit(lambda p: sum(abs(x).sum() for x in jax.tree.leaves(p)))(state.params)
    print(
        f"ended at step {int(state.step)} with {float(norm):.6f} over {jax.device_count()} devices",
        flush=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
