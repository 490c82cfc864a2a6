"""Many errands, one after the other or several at once, and what people and scripts hear of them.

For people on standard error. On standard output, where it is a pipe or a file, the names of the results; with `--json`
one object a line for every picture.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hiresfix.cli import exit_codes
from hiresfix.cli.backends import Done, Enlarger
from hiresfix.cli.inputs import Errand
from hiresfix.cli.resume_log import Journal
from hiresfix.errors import Cancelled, HiresfixError
from hiresfix.files import require_writable

if TYPE_CHECKING:
    from rich.progress import Progress

LEAVE_SECONDS = 2.0
"""How long whoever interrupts waits for what is under way to let go."""
MOST_NAMED = 10
"""Pictures that are named once more at the end."""
_COUNTED = (
    ("done", "made"),
    ("skipped", "made already"),
    ("failed", "failed"),
    ("not finished", "not finished"),
    ("not begun", "not begun"),
)


@dataclass(kw_only=True)
class Batch:
    """Errands being done. `again`: those that are done already, too.

    endless: there is always more to come, so that what may succeed later is `postponed` and no reason to stop.
    """

    enlarger: Enlarger
    journal: Journal
    fingerprint: str
    again: bool
    as_json: bool
    endless: bool = False
    postponed: set[Path] = field(default_factory=set)
    failed: list[Path] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    codes: list[int] = field(default_factory=list)
    told: set[str] = field(default_factory=set)
    stopping: threading.Event = field(default_factory=threading.Event)
    speaking: threading.Lock = field(default_factory=threading.Lock)

    def run(self, errands: Sequence[Errand]) -> int:
        """Do all; returns the exit code that stands for all so far."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        # File names may look like markup, and are not.
        self._console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
        bar = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
        )
        left: queue.SimpleQueue[Errand] = queue.SimpleQueue()
        for errand in errands:
            left.put(errand)
        with Progress(*bar, console=self._console, transient=True, disable=not self._console.is_terminal) as progress:
            self._all = progress.add_task(f"0 of {len(errands)}", total=len(errands), visible=len(errands) > 1)
            if self.enlarger.most == 1:
                self._work(left, progress)
            else:
                self._work_together(left, progress, min(self.enlarger.most, len(errands)))
        self._tell_of_the_rest(left)
        return exit_codes.together(self.codes)

    def tell_counts(self) -> None:
        """The last line for people, where there were several pictures."""
        if self.counts.total() > 1:
            told = ", ".join(f"{self.counts[status]} {words}" for status, words in _COUNTED if self.counts[status])
            self._console.print(f"{told}.")
        if 1 <= len(self.failed) <= MOST_NAMED and self.counts.total() > MOST_NAMED:
            self._console.print(f"Failed: {', '.join(map(str, self.failed))}", style="red")

    def _work_together(self, left: queue.SimpleQueue[Errand], progress: Progress, workers: int) -> None:
        # Daemons: who interrupts need not wait for an answer that a server takes its time for.
        threads = [threading.Thread(target=self._work, args=(left, progress), daemon=True) for _ in range(workers)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.1)
        except KeyboardInterrupt:
            self.stopping.set()
            deadline = time.monotonic() + LEAVE_SECONDS
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
            self._console.print("What the server has begun goes on there; the same command fetches it.")
            raise

    def _work(self, left: queue.SimpleQueue[Errand], progress: Progress) -> None:
        while not self.stopping.is_set():
            try:
                errand = left.get_nowait()
            except queue.Empty:
                return
            self._do(errand, progress)
            with self.speaking:
                progress.advance(self._all)
                told = progress.tasks[0]
                progress.update(self._all, description=f"{told.completed:g} of {told.total:g}")

    def _do(self, errand: Errand, progress: Progress) -> None:
        made = self.journal.is_made(errand, self.fingerprint)
        if made and not self.again:
            self._say(errand, "skipped", "already made")
            return
        if not self.again and not self.journal.may_replace(errand.target):
            told = f"{errand.target} is there already, and not as this command left it. Move it away, or use --again."
            self._failed(errand, FileExistsError(told))
            return
        # What was begun and not finished goes on; what is finished and wanted again is another piece of work.
        (self.journal.begin_anew if made else self.journal.begin)(errand, self.fingerprint)
        task = progress.add_task(errand.source.name, total=1.0)
        started = time.perf_counter()

        def report(fraction: float, doing: str) -> None:
            if self.stopping.is_set():
                raise Cancelled
            name = f"{errand.source.name} ({doing})" if doing else errand.source.name
            progress.update(task, completed=fraction, description=name)

        try:
            require_writable(errand.target)
            done = self.enlarger.enlarge(errand, report)
        except Cancelled:
            self._not_done(errand, "not finished")
        except (HiresfixError, OSError) as error:
            self._failed(errand, error)
        else:
            self.journal.note_made(errand)
            self._say(errand, "done", f"{done.summary}, {time.perf_counter() - started:.1f} s", done)
        finally:
            progress.remove_task(task)

    def _failed(self, errand: Errand, error: HiresfixError | OSError) -> None:
        code = exit_codes.code_of(error)
        if code == exit_codes.LATER and self.endless:
            self.postponed.add(errand.source)
        else:
            self.codes.append(code)
            if code in exit_codes.HOPELESS:
                self.stopping.set()
        with self.speaking:
            self.counts["failed"] += 1
            self.failed.append(errand.source)
            self._console.print(f"{errand.source}: {error}", style="red")
            if self.as_json:
                name = error.code if isinstance(error, HiresfixError) else "file_error"
                self._line(errand, "failed", error=str(error), code=name)

    def _say(self, errand: Errand, status: str, text: str, done: Done | None = None) -> None:
        with self.speaking:
            self.counts[status] += 1
            self._console.print(f"{errand.target}  {text}")
            if self.as_json:
                facts = {"seed": done.seed, "width": done.width, "height": done.height, "job": done.job} if done else {}
                self._line(errand, status, **{name: fact for name, fact in facts.items() if fact is not None})
            elif not sys.stdout.isatty():
                typer.echo(errand.target)
            for note in done.notes if done else ():
                if note not in self.told:
                    self._console.print(f"  note: {note}", style="dim")
                    self.told.add(note)

    def _tell_of_the_rest(self, left: queue.SimpleQueue[Errand]) -> None:
        if left.empty():
            return
        self._console.print(
            f"{left.qsize()} more were not begun: they would fail the same way. "
            "Once that is mended, the same command goes on here.",
            style="red",
        )
        while not left.empty():
            self._not_done(left.get_nowait(), "not begun")

    def _not_done(self, errand: Errand, status: str) -> None:
        with self.speaking:
            self.counts[status] += 1
            if self.as_json:
                self._line(errand, status)

    @staticmethod
    def _line(errand: Errand, status: str, **facts: Any) -> None:
        line = {"source": str(errand.source), "target": str(errand.target), "status": status, **facts}
        typer.echo(json.dumps(line, ensure_ascii=False))
