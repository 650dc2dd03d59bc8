"""Times from `mforce app` to its page answering.

python benchmarks/app.py --checkpoint=runs/demo/forcing --starts=3

CPU seconds are those of the process and do not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from modality_forcing.progress import format_table


def start(checkpoint: str) -> tuple[float, float]:
    """Returns the seconds until the page answers, and the CPU seconds that the process used."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "modality_forcing.cli", "app", "--port=0"]
    running = subprocess.Popen(
        [*command, f"--checkpoint={checkpoint}"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert running.stdout is not None
        address = running.stdout.readline().split()
        if not address:
            sys.exit(running.wait())
        with urllib.request.urlopen(address[0]) as answer:
            answer.read()
        fields = Path(f"/proc/{running.pid}/stat").read_text().rpartition(")")[2].split()
        used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter() - began, used
    finally:
        running.terminate()
        running.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--starts", type=int, default=3)
    options = parser.parse_args()
    rows = [start(options.checkpoint) for _ in range(options.starts)]
    table = [[f"{i + 1}", f"{wall:.1f}", f"{cpu:.1f}"] for i, (wall, cpu) in enumerate(rows)]
    print(format_table([["start", "seconds to the page", "CPU seconds"], *table]))
    load = os.getloadavg()[0]
    print(f"load {load:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
