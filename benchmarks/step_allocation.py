"""Where the steps of a tilted trajectory should fall: uniform in the lead's time, or equal arc length along the joint path.

    python benchmarks/step_allocation.py --checkpoint runs/demo/forcing

Joint generation for every held-out caption; AbsRel and delta1 are of the generated depth against the model's own
image-to-depth of the generated picture, `constant` is what the best constant scores there (depth that says little is
easy to agree with), `found` the share of the caption's colour words in the picture. Same noise in every row.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

from modality_forcing.evaluation.heldout import Evaluator, with_examples
from modality_forcing.generator import Generator


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20, 50])
    parser.add_argument("--log2-alpha", type=float, nargs="+", default=[5.0, 3.0, -3.0])
    parser.add_argument("--examples", type=int)
    options = parser.parse_args()

    generator = Generator.from_checkpoint(options.checkpoint)
    config = (
        with_examples(generator.config, options.examples) if options.examples else generator.config
    )
    evaluator = Evaluator(config)
    print(
        "| log2 alpha | steps | spacing | AbsRel | constant | AbsRel / constant | delta1 | found |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for log2_alpha in options.log2_alpha:
        for steps in options.steps:
            for spacing in ("uniform", "arc"):
                started = time.monotonic()
                evaluator.config = replace(
                    config, sample=replace(config.sample, steps=steps, spacing=spacing)
                )
                numbers, made = evaluator.joint(generator, log2_alpha)
                found = evaluator.text(made["image"])["found"]
                share = numbers["absrel"] / numbers["constant"]
                cells = [
                    f"{numbers['absrel']:.4f}",
                    f"{numbers['constant']:.4f}",
                    f"{share:.3f}",
                    f"{numbers['delta1']:.3f}",
                ]
                print(
                    f"| {log2_alpha:g} | {steps} | {spacing} | {' | '.join(cells)} | {found:.3f} |",
                    flush=True,
                )
                print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
