"""Run 200 jobs while everything fails, and check that nothing is lost.

    python -m tests.chaos [--seed N] [--jobs N] [--short] [--write]

Uses real processes, a real PostgreSQL, a real file system where one can be mounted, and the upscaler that needs no
downloads, on small images. Prints the faults, what they cost, and whether each check passed. Exits 1 if a check failed,
and then keeps the logs and prints where they are. The seed determines the schedule of faults, not all of what they hit.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.chaos import environment, faults, report, scenario
from tests.chaos.scenario import ScenarioResult

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--short", action="store_true", help="run the half minute that the tests run")
    parser.add_argument("--write", action="store_true", help=f"write the tables to {RESULTS.name}/")
    options = parser.parse_args()
    plan = faults.short(options.seed) if options.short else faults.full(options.seed, jobs=options.jobs)
    home = Path(tempfile.mkdtemp(prefix="hiresfix-chaos-"))
    home.chmod(0o755)  # as root, PostgreSQL runs as a different user
    result = _run(plan, home)
    console = Console()
    for table in report.tables(result):
        console.print(table)
    if options.write:
        report.write(result, RESULTS)
    if not result.passed:
        console.print(f"Something was lost. The logs are in {home}.", style="bold red")
        return 1
    environment.clear(home)
    return 0


def _run(plan: faults.FaultPlan, home: Path) -> ScenarioResult:
    columns = (TextColumn("{task.description:<11}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("[red]{task.fields[status]}")) as progress:
        task = progress.add_task("starting", total=plan.jobs, status="")

        def show(accepted: int, unfinished: int, active_faults: set[str]) -> None:
            status = f"{unfinished} unfinished" if unfinished >= 0 else "; ".join(sorted(active_faults))
            description = "jobs" if unfinished < 0 else "finishing"
            progress.update(task, completed=min(accepted, plan.jobs), description=description, status=status)

        return scenario.run(plan, home, show)


if __name__ == "__main__":
    sys.exit(main())
