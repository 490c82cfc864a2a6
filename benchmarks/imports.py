"""Import cost: CPU seconds and modules of `import hiresfix`, its client and its command line.

    python -m benchmarks.imports

Each is imported in separate processes; the result is the median, minus the time of an empty interpreter.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

PROGRAMS = {
    "hiresfix": "import hiresfix",
    "hiresfix.Client": "import hiresfix; hiresfix.Client",
    "hiresfix.cli": "import hiresfix.cli",
}
MEASURE = "import sys, time; before = len(sys.modules); {}; print(time.process_time(), len(sys.modules) - before)"


def measure(program: str, times: int) -> tuple[float, int]:
    """Return the median CPU seconds of the whole process, and the modules that the program loaded."""
    runs = [
        subprocess.run([sys.executable, "-c", MEASURE.format(program)], capture_output=True, text=True, check=True)
        for _ in range(times)
    ]
    seconds = statistics.median(float(run.stdout.split()[0]) for run in runs)
    return seconds, int(runs[0].stdout.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=9, help="processes for each")
    times = parser.parse_args().times
    empty, _ = measure("pass", times)
    for name, program in PROGRAMS.items():
        seconds, modules = measure(program, times)
        print(f"{name:<16} {seconds - empty:.3f} s of CPU, {modules} modules")


if __name__ == "__main__":
    main()
