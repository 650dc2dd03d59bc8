"""Runs all property tests of the repository with new examples until the time is up.

    python tests/fuzz.py --minutes=60 [TESTS ...]

Each round is one run of pytest with another seed. It prints the failing tests with the smallest
input that fails, and exits with 1 if there were any. Tests that damage files (`tests/damage.py`)
try FUZZ_FACTOR times as many examples as in CI.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
NO_TESTS = 5  # exit code of pytest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60, help="%(default)s")
    parser.add_argument("--factor", type=int, default=20, help="of the examples (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first round (%(default)s)")
    parser.add_argument("tests", nargs="*", default=["tests/unit"], help="%(default)s")
    options = parser.parse_args()
    environment = {
        **os.environ,
        "FUZZ_FACTOR": str(options.factor),
        "HYPOTHESIS_PROFILE": "fuzz",
        "PYTHONPATH": str(ROOT),
    }
    end, seed, failed = time.monotonic() + 60 * options.minutes, options.seed, False
    while time.monotonic() < end:
        command = [sys.executable, "-m", "pytest", "-m", "hypothesis", f"--hypothesis-seed={seed}"]
        command += ["--durations=0", "--tb=short", "-p", "no:cacheprovider", *options.tests]
        print(f"seed {seed}", flush=True)
        code = subprocess.run(command, cwd=ROOT, env=environment).returncode
        if code == NO_TESTS:
            print("no property tests there")
            return 2
        failed, seed = failed or code != 0, seed + 1
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
