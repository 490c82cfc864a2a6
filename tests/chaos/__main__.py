"""Everything goes wrong while 200 jobs run, and nothing is lost.

    python -m tests.chaos [--seed N] [--jobs N] [--write]

Real processes, a real PostgreSQL, a real disk where one can be mounted, and the enlarger that the package brings, on
small pictures. Prints what was broken, what that cost and whether each promise was kept; exits 1 if one was not, and
then leaves the logs where it says. The schedule follows from the seed; what each fault hits does not entirely.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.chaos import faults, report, stage
from tests.chaos.play import Outcome, play

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--short", action="store_true", help="the half minute that the tests play")
    parser.add_argument("--write", action="store_true", help=f"keep the tables under {RESULTS.name}/")
    asked = parser.parse_args()
    plan = faults.short(asked.seed) if asked.short else faults.full(asked.seed, jobs=asked.jobs)
    home = Path(tempfile.mkdtemp(prefix="hiresfix-chaos-"))
    home.chmod(0o755)  # PostgreSQL runs as a user of its own when we are root
    outcome = _perform(plan, home)
    console = Console()
    for table in report.tables(outcome):
        console.print(table)
    if asked.write:
        report.write(outcome, RESULTS)
    if not outcome.is_whole:
        console.print(f"Something was lost. The logs are in {home}.", style="bold red")
        return 1
    stage.clear(home)
    return 0


def _perform(plan: faults.Plan, home: Path) -> Outcome:
    columns = (TextColumn("{task.description:<11}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("[red]{task.fields[now]}")) as progress:
        task = progress.add_task("starting", total=plan.jobs, now="")

        def show(accepted: int, unfinished: int, now: set[str]) -> None:
            said = f"{unfinished} unfinished" if unfinished >= 0 else "; ".join(sorted(now))
            description = "jobs" if unfinished < 0 else "calming"
            progress.update(task, completed=min(accepted, plan.jobs), description=description, now=said)

        return play(plan, home, show)


if __name__ == "__main__":
    sys.exit(main())
