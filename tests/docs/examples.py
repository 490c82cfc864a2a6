"""Run the programs of a page in order, as one reader would: same folder, same shell, same interpreter.

Variables that a `sh` block assigns or exports are visible in all later blocks. Python blocks share their names; each
JavaScript block is its own module. `Reader.replacements` replaces the page's server, key and images with the test's;
JOB_ID stands for the last job that a program printed. A program that fails stops the page; the error has its line and
its output.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.docs.pages import Block, Page

BLOCK_TIMEOUT = 300.0
"""Seconds that one block may run."""

_INTERPRETER = """
import contextlib, io, json, os, sys, traceback
names = {"__name__": "__main__"}
for line in sys.stdin:
    request = json.loads(line)
    os.environ.update(request["environment"])
    output, error = io.StringIO(), None
    with contextlib.redirect_stdout(output):
        try:
            exec(compile(request["code"], request["name"], "exec"), names)
        except BaseException:
            error = traceback.format_exc()
    print(json.dumps({"output": output.getvalue(), "error": error}), flush=True)
"""

_JOB = re.compile(r"\"jobId\": ?\"([0-9a-f-]{36})\"")


class ExampleFailed(AssertionError):
    """A program of a page failed, or printed something else than the page shows."""


@dataclass(kw_only=True)
class Reader:
    """Runs what a page shows, in `folder`."""

    folder: Path
    environment: dict[str, str]
    replacements: Mapping[str, str]
    node: str | None
    skipped_languages: list[str] = field(default_factory=list)
    """Languages whose programs did not run, because they are not installed."""
    _background: list[tuple[subprocess.Popen[str], Block]] = field(default_factory=list)
    _python: subprocess.Popen[str] | None = None

    def read(self, page: Page) -> None:
        output = ""
        for block in page.blocks:
            place = f"{page.name}:{block.line}"
            if block.marker.startswith("file: "):
                (self.folder / block.marker.removeprefix("file: ")).write_text(self._replaced(block.code))
            elif block.marker == "output":
                check_output(block.code, output, place)
            elif block.marker == "background":
                self._start(block)
            elif block.runs:
                output = self._run(block, place)
        for process, block in self._background:
            if process.poll() is not None:
                raise ExampleFailed(
                    f"{page.name}:{block.line} should keep running, but ended with {process.returncode}."
                )

    def close(self) -> None:
        for process in (*(process for process, _ in self._background), self._python):
            if process is not None:
                process.kill()
                process.communicate()

    def _replaced(self, code: str) -> str:
        for shown, value in self.replacements.items():
            code = code.replace(shown, value)
        return code

    def _run(self, block: Block, place: str) -> str:
        output = self._run_language(block, place)
        if jobs := _JOB.findall(output):
            self.replacements = {**self.replacements, "JOB_ID": jobs[-1]}
        return output

    def _run_language(self, block: Block, place: str) -> str:
        code = self._replaced(block.code)
        match block.language:
            case "sh" | "bash":
                return self._run_shell(code, place)
            case "python":
                return self._run_python(code, place)
            case _ if self.node:
                return self._run_javascript(code, place)
        self.skipped_languages.append(block.language)
        return "…"

    def _run_shell(self, code: str, place: str) -> str:
        state = self.folder / ".environment"
        program = f"set -euo pipefail -o allexport\ntrap 'env -0 > {state}' EXIT\n{code}"
        output = self._finish(["bash", "-c", program], place)
        variables = dict(item.split("=", 1) for item in state.read_text().split("\0") if item)
        state.unlink()
        self.environment |= {
            name: value for name, value in variables.items() if name not in ("_", "SHLVL", "PWD", "OLDPWD")
        }
        return output

    def _run_javascript(self, code: str, place: str) -> str:
        return self._finish([self.node or "node", "--input-type=module", "--eval", code], place)

    def _finish(self, command: list[str], place: str) -> str:
        process = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=BLOCK_TIMEOUT,
            stdin=subprocess.DEVNULL,
        )
        if process.returncode:
            raise ExampleFailed(f"{place} ended with {process.returncode}:\n{process.stdout}{process.stderr}")
        return process.stdout

    def _run_python(self, code: str, place: str) -> str:
        if self._python is None:
            self._python = subprocess.Popen(
                [sys.executable, "-c", _INTERPRETER],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        request = {"code": code, "name": place, "environment": self.environment}
        answer = json.loads(_ask(self._python, json.dumps(request)) or '{"error": "the interpreter died"}')
        if answer["error"]:
            raise ExampleFailed(f"{place}:\n{answer.get('output', '')}{answer['error']}")
        return str(answer["output"])

    def _start(self, block: Block) -> None:
        code = self._replaced(block.code)
        commands = {"sh": ["bash", "-c", code], "python": [sys.executable, "-c", code]}
        process = subprocess.Popen(
            commands.get(block.language) or [self.node or "node", "--input-type=module", "--eval", code],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._background.append((process, block))
        for url in re.findall(r"http://127\.0\.0\.1:\d+", code) or self._listening(code):
            wait_for(url)

    def _listening(self, code: str) -> list[str]:
        """Return the URLs of the servers that a background program opens: those whose ports it names."""
        ports = [port for port in self.replacements.values() if port.isdecimal() and port in code]
        return [f"http://127.0.0.1:{port}" for port in ports]


def _ask(process: subprocess.Popen[str], line: str) -> str:
    """Send a line to a process and return the line that it answers."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return process.stdout.readline()


def wait_for(url: str) -> None:
    """Wait until a server answers at the URL, with any answer."""
    deadline = time.monotonic() + 60
    while True:
        try:
            httpx.get(url, timeout=5)
            return
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def check_output(expected: str, output: str, place: str) -> None:
    """Compare output with what the page shows: … is any text, and alone on a line any lines.

    Raises:
        ExampleFailed: They differ.
    """
    if output == "…":
        return
    lines = (r"(?:.*\n)*" if line.strip() == "…" else _pattern(line) for line in expected.rstrip().splitlines())
    if not re.fullmatch("".join(lines), output.rstrip() + "\n"):
        raise ExampleFailed(f"{place} shows\n{expected}\nbut the program printed\n{output}")


def _pattern(line: str) -> str:
    return ".*".join(map(re.escape, line.rstrip().split("…"))) + r"[ \t]*\n"


def environment_of(server: Mapping[str, str]) -> dict[str, str]:
    """Return the tests' environment plus a server's settings, with this interpreter's programs first in PATH."""
    programs = str(Path(sys.executable).parent)
    environment = {**os.environ, "COLUMNS": "120", **server}
    return environment | {"PATH": f"{programs}{os.pathsep}{environment['PATH']}"}
