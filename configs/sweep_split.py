"""How to split a budget between pretraining and post-training, on procedural scenes.

    mforce sweep --config=sweep_split --workdir=runs/split
    mforce plan --sweep=sweep_split

The networks and data of sweep_scenes, at one width. A cell spends the FLOPs of 600, 2,400 or 9,600
post-training steps. The axis `share` is the part that goes to pretraining. Its runs have one
constant phase, off which all shorter ones branch; every post-training run has a schedule of its
own.

30 cells of 24 + 30 training runs, of which 22 are branches: less than an hour of one core.
"""

from dataclasses import replace

from modality_forcing.config_file import check_range, load, parse_arg
from modality_forcing.sweeps.spec import Records, Run, Sweep, axis, horizons, product, sweep
from modality_forcing.train.throughput import step_flops
from modality_forcing.train.width_scaling import with_horizon

BUDGETS = (600, 2_400, 9_600)  # in steps of post-training
SHARES = (0.0, 0.25, 0.5, 0.75, 0.9)


def get_sweep(arg: str = "") -> Sweep:
    """Takes width, shorter (divides the budgets), seeds and examples (held-out scenes)."""
    a = parse_arg(arg, width=48, shorter=1, seeds=2, examples=256)
    check_range("shorter", a["shorter"], 1, 100)
    check_range("seeds", a["seeds"], 1)
    budgets = tuple(n // a["shorter"] for n in BUDGETS)
    points = product(
        axis("seed", *range(a["seeds"])), axis("budget", *budgets), axis("share", *SHARES)
    )
    network = f"width={a['width']},examples={a['examples']}"
    t2i, forcing = (load(f"sweep_scenes:phase={phase},{network}") for phase in ("t2i", "forcing"))
    # In pretraining, a step costs less: it has no depth.
    steps_for_one = step_flops(forcing) / step_flops(t2i)

    def images(budget: int, share: float) -> int:
        return round(share * budget * steps_for_one) * t2i.train.batch

    horizons_of_all = sorted({images(b, s) for b in budgets for s in SHARES if s})

    def cell(seed: int, budget: int, share: float) -> Run:
        before, config = None, replace(forcing, seed=seed)
        if share:
            pretraining = horizons("pretraining", replace(t2i, seed=seed), horizons_of_all)
            before = pretraining[images(budget, share)]
        else:
            config = replace(config, train=replace(config.train, allow_missing_modalities=()))
        frames = round((1 - share) * budget) * config.train.batch
        return Run("forcing", with_horizon(config, frames), init_from=before)

    return sweep("split", points, cell, Records(seed=0))
