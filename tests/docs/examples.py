"""Runs the programs of a page in its order, as one reader would: same folder, same shell, same interpreter.

What one block of `sh` exports or assigns, all following blocks see; blocks of Python share their names; each block of
JavaScript is a module of its own. `Reader.stand_ins` replaces the words of the page that mean the reader's own server,
key and pictures; JOB_ID means the last job that a program printed. A program that fails stops the page, with its
line and what it said.
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
from typing import IO

import httpx

from tests.docs.pages import Block, Page

SECONDS = 300.0
"""For one block."""

_INTERPRETER = """
import contextlib, io, json, os, sys, traceback
names = {"__name__": "__main__"}
for line in sys.stdin:
    asked = json.loads(line)
    os.environ.update(asked["environment"])
    printed, failed = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        try:
            exec(compile(asked["code"], asked["name"], "exec"), names)
        except BaseException:
            failed = traceback.format_exc()
    print(json.dumps({"printed": printed.getvalue(), "failed": failed}), flush=True)
"""


_JOB = re.compile(r"\"jobId\": ?\"([0-9a-f-]{36})\"")


class ExampleFailed(AssertionError):
    """A program of a page did not do what the page says."""


@dataclass(kw_only=True)
class Reader:
    """Somebody who types in what a page shows, in `folder`."""

    folder: Path
    environment: dict[str, str]
    stand_ins: Mapping[str, str]
    node: str | None
    left_out: list[str] = field(default_factory=list)
    """Languages that are not installed here, and whose programs were therefore not run."""
    _background: list[tuple[subprocess.Popen[str], Block]] = field(default_factory=list)
    _python: subprocess.Popen[str] | None = None

    def read(self, page: Page) -> None:
        printed = ""
        for block in page.blocks:
            place = f"{page.name}:{block.line}"
            if block.marker.startswith("file: "):
                (self.folder / block.marker.removeprefix("file: ")).write_text(self._meant(block.code))
            elif block.marker == "output":
                check_output(block.code, printed, place)
            elif block.marker == "background":
                self._start(block)
            elif block.runs:
                printed = self._run(block, place)
        for process, block in self._background:
            if process.poll() is not None:
                raise ExampleFailed(
                    f"{page.name}:{block.line} was to go on running and ended with {process.returncode}."
                )

    def close(self) -> None:
        for process in (*(process for process, _ in self._background), self._python):
            if process is not None:
                process.kill()
                process.communicate()

    def _meant(self, code: str) -> str:
        for said, meant in self.stand_ins.items():
            code = code.replace(said, meant)
        return code

    def _run(self, block: Block, place: str) -> str:
        printed = self._program(block, place)
        if jobs := _JOB.findall(printed):
            self.stand_ins = {**self.stand_ins, "JOB_ID": jobs[-1]}
        return printed

    def _program(self, block: Block, place: str) -> str:
        code = self._meant(block.code)
        match block.language:
            case "sh" | "bash":
                return self._shell(code, place)
            case "python":
                return self._interpret(code, place)
            case _ if self.node:
                return self._module(code, place)
        self.left_out.append(block.language)
        return "…"

    def _shell(self, code: str, place: str) -> str:
        state = self.folder / ".environment"
        program = f"set -euo pipefail -o allexport\ntrap 'env -0 > {state}' EXIT\n{code}"
        printed = self._finished(["bash", "-c", program], place)
        kept = dict(item.split("=", 1) for item in state.read_text().split("\0") if item)
        state.unlink()
        self.environment |= {name: value for name, value in kept.items() if name not in ("_", "SHLVL", "PWD", "OLDPWD")}
        return printed

    def _module(self, code: str, place: str) -> str:
        return self._finished([self.node or "node", "--input-type=module", "--eval", code], place)

    def _finished(self, command: list[str], place: str) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            raise ExampleFailed(f"{place} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def _interpret(self, code: str, place: str) -> str:
        if self._python is None:
            self._python = subprocess.Popen(
                [sys.executable, "-c", _INTERPRETER],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        asked = {"code": code, "name": place, "environment": self.environment}
        answer = json.loads(_line(self._python, json.dumps(asked)) or '{"failed": "the interpreter died"}')
        if answer["failed"]:
            raise ExampleFailed(f"{place}:\n{answer.get('printed', '')}{answer['failed']}")
        return str(answer["printed"])

    def _start(self, block: Block) -> None:
        code = self._meant(block.code)
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
        """The servers that a program in the background opens are those whose ports it names."""
        ports = [port for port in self.stand_ins.values() if port.isdecimal() and port in code]
        return [f"http://127.0.0.1:{port}" for port in ports]


def _line(process: subprocess.Popen[str], sent: str) -> str:
    def of(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe

    of(process.stdin).write(sent + "\n")
    of(process.stdin).flush()
    return of(process.stdout).readline()


def wait_for(url: str) -> None:
    """Until somebody answers there, whatever the answer."""
    deadline = time.monotonic() + 60
    while True:
        try:
            httpx.get(url, timeout=5)
            return
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def check_output(expected: str, printed: str, place: str) -> None:
    """Raises ExampleFailed unless `printed` is what the page shows: … is anything, alone on a line any lines."""
    if printed == "…":
        return
    lines = (r"(?:.*\n)*" if line.strip() == "…" else _pattern(line) for line in expected.rstrip().splitlines())
    if not re.fullmatch("".join(lines), printed.rstrip() + "\n"):
        raise ExampleFailed(f"{place} shows\n{expected}\nand what was printed is\n{printed}")


def _pattern(line: str) -> str:
    return ".*".join(map(re.escape, line.rstrip().split("…"))) + r"[ \t]*\n"


def environment_of(server: Mapping[str, str]) -> dict[str, str]:
    """The tests' own environment, with this interpreter's programs found first, and the settings of a server."""
    programs = str(Path(sys.executable).parent)
    found = {**os.environ, "COLUMNS": "120", **server}
    return found | {"PATH": f"{programs}{os.pathsep}{found['PATH']}"}
