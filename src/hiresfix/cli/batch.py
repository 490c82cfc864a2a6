"""Batch of upscale tasks, run one after the other or in parallel, with output for people and for scripts.

Messages for people go to standard error. Standard output gets the paths of the results if it is a pipe or a file, or
with `--json` one object per line for every image.
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
from hiresfix.cli.backends import Backend, TaskResult
from hiresfix.cli.inputs import UpscaleTask
from hiresfix.cli.resume_log import ResumeLog
from hiresfix.errors import Cancelled, HiresfixError
from hiresfix.files import require_writable

if TYPE_CHECKING:
    from rich.progress import Progress

INTERRUPT_SECONDS = 2.0
"""After an interrupt, wait this long for running tasks to stop."""
MAX_FAILED_NAMES = 10
"""Failed images are listed again at the end, unless there are more of them."""
_SUMMARY_WORDS = {
    "done": "done",
    "skipped": "already done",
    "failed": "failed",
    "not finished": "not finished",
    "not begun": "not started",
}
"""Status, as `--json` spells it, to the word in the last line for people."""


@dataclass(kw_only=True)
class Batch:
    """Tasks and their outcome.

    Attributes:
        again: also redo finished tasks.
        endless: more tasks will follow, so errors that may go away are `postponed` and do not stop the batch.
    """

    backend: Backend
    log: ResumeLog
    fingerprint: str
    again: bool
    as_json: bool
    endless: bool = False
    postponed: set[Path] = field(default_factory=set)
    failed: list[Path] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    codes: list[int] = field(default_factory=list)
    shown_notes: set[str] = field(default_factory=set)
    stopping: threading.Event = field(default_factory=threading.Event)
    output_lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, tasks: Sequence[UpscaleTask]) -> int:
        """Run all tasks; returns the exit code for all runs so far."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        # Without markup: file names may look like it.
        self._console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
        )
        waiting: queue.SimpleQueue[UpscaleTask] = queue.SimpleQueue()
        for task in tasks:
            waiting.put(task)
        quiet = not self._console.is_terminal
        with Progress(*columns, console=self._console, transient=True, disable=quiet) as progress:
            self._total_bar = progress.add_task(f"0 of {len(tasks)}", total=len(tasks), visible=len(tasks) > 1)
            if self.backend.max_parallel == 1:
                self._work(waiting, progress)
            else:
                self._work_in_parallel(waiting, progress, min(self.backend.max_parallel, len(tasks)))
        self._report_not_started(waiting)
        return exit_codes.combine(self.codes)

    def print_summary(self) -> None:
        """Print the last line for people, if there were several images."""
        if self.counts.total() > 1:
            parts = [
                f"{self.counts[status]} {words}" for status, words in _SUMMARY_WORDS.items() if self.counts[status]
            ]
            self._console.print(f"{', '.join(parts)}.")
        if 1 <= len(self.failed) <= MAX_FAILED_NAMES and self.counts.total() > MAX_FAILED_NAMES:
            self._console.print(f"Failed: {', '.join(map(str, self.failed))}", style="red")

    def _work_in_parallel(self, waiting: queue.SimpleQueue[UpscaleTask], progress: Progress, workers: int) -> None:
        # Daemon threads: an interrupt must not wait for a slow answer of the server.
        threads = [threading.Thread(target=self._work, args=(waiting, progress), daemon=True) for _ in range(workers)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.1)
        except KeyboardInterrupt:
            self.stopping.set()
            deadline = time.monotonic() + INTERRUPT_SECONDS
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
            self._console.print("Jobs on the server go on; run the same command again to fetch them.")
            raise

    def _work(self, waiting: queue.SimpleQueue[UpscaleTask], progress: Progress) -> None:
        while not self.stopping.is_set():
            try:
                task = waiting.get_nowait()
            except queue.Empty:
                return
            self._run_task(task, progress)
            with self.output_lock:
                progress.advance(self._total_bar)
                total = progress.tasks[0]
                progress.update(self._total_bar, description=f"{total.completed:g} of {total.total:g}")

    def _run_task(self, task: UpscaleTask, progress: Progress) -> None:
        finished = self.log.is_finished(task, self.fingerprint)
        if finished and not self.again:
            self._report(task, "skipped", "already done")
            return
        if not self.again and not self.log.may_replace(task.target):
            message = f"{task.target} exists and was not made by this command, or was changed. Move it, or use --again."
            self._report_failure(task, FileExistsError(message))
            return
        # An unfinished task is resumed; redoing a finished one is a new task.
        (self.log.restart if finished else self.log.resume)(task, self.fingerprint)
        bar = progress.add_task(task.source.name, total=1.0)
        started = time.perf_counter()

        def on_progress(fraction: float, activity: str) -> None:
            if self.stopping.is_set():
                raise Cancelled
            name = f"{task.source.name} ({activity})" if activity else task.source.name
            progress.update(bar, completed=fraction, description=name)

        try:
            require_writable(task.target)
            result = self.backend.upscale(task, on_progress)
        except Cancelled:
            self._count(task, "not finished")
        except (HiresfixError, OSError) as error:
            self._report_failure(task, error)
        else:
            self.log.record_result(task)
            self._report(task, "done", f"{result.summary}, {time.perf_counter() - started:.1f} s", result)
        finally:
            progress.remove_task(bar)

    def _report_failure(self, task: UpscaleTask, error: HiresfixError | OSError) -> None:
        code = exit_codes.code_of(error)
        if code == exit_codes.TRY_LATER and self.endless:
            self.postponed.add(task.source)
        else:
            self.codes.append(code)
            if code in exit_codes.FATAL:
                self.stopping.set()
        with self.output_lock:
            self.counts["failed"] += 1
            self.failed.append(task.source)
            self._console.print(f"{task.source}: {error}", style="red")
            if self.as_json:
                name = error.code if isinstance(error, HiresfixError) else "file_error"
                self._print_json(task, "failed", error=str(error), code=name)

    def _report(self, task: UpscaleTask, status: str, text: str, result: TaskResult | None = None) -> None:
        with self.output_lock:
            self.counts[status] += 1
            self._console.print(f"{task.target}  {text}")
            if self.as_json:
                names = ("seed", "width", "height", "job") if result else ()
                facts = {name: getattr(result, name) for name in names}
                self._print_json(task, status, **{name: fact for name, fact in facts.items() if fact is not None})
            elif not sys.stdout.isatty():
                typer.echo(task.target)
            for note in result.notes if result else ():
                if note not in self.shown_notes:
                    self._console.print(f"  note: {note}", style="dim")
                    self.shown_notes.add(note)

    def _report_not_started(self, waiting: queue.SimpleQueue[UpscaleTask]) -> None:
        if waiting.empty():
            return
        self._console.print(
            f"{waiting.qsize()} more were not started: they would fail in the same way. "
            "Fix the cause and run the same command again.",
            style="red",
        )
        while not waiting.empty():
            self._count(waiting.get_nowait(), "not begun")

    def _count(self, task: UpscaleTask, status: str) -> None:
        with self.output_lock:
            self.counts[status] += 1
            if self.as_json:
                self._print_json(task, status)

    @staticmethod
    def _print_json(task: UpscaleTask, status: str, **facts: Any) -> None:
        line = {"source": str(task.source), "target": str(task.target), "status": status, **facts}
        typer.echo(json.dumps(line, ensure_ascii=False))
