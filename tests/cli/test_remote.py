"""`hiresfix upscale --remote` against a real server: output for people and for scripts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hiresfix import cli
from hiresfix.cli import upscale
from hiresfix.client import retry
from tests.conftest import png
from tests.fake_server import Answer, FakeServer, ReceivedRequest, forward, json_answer
from tests.live_server import LiveServer
from tests.server.conftest import wait_until

FAITHFUL = ("--model", "faithful-upscale")


@pytest.fixture(autouse=True)
def user(live_server: LiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIRESFIX_URL", live_server.url)
    monkeypatch.setenv("HIRESFIX_API_KEY", live_server.key)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def worker(live_server: LiveServer) -> Iterator[None]:
    """Finish every queued job."""
    with live_server.working():
        yield


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process; returns exit code, standard output and standard error."""

    def run_command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hiresfix", "upscale", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        output = capsys.readouterr()
        return int(exit_info.value.code or 0), output.out, output.err

    return run_command


def json_lines(out: str) -> list[dict[str, Any]]:
    """Return the output of `--json`, without the log lines of the server in this process."""
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def folder(tmp_path: Path, *names: str) -> Path:
    source = tmp_path / "in"
    source.mkdir()
    for index, name in enumerate(names):
        (source / name).write_bytes(png(9 + index, 8))
    return source


@pytest.mark.usefixtures("worker")
def test_second_run_skips_finished_images(live_server: LiveServer, run: Run, tmp_path: Path) -> None:
    source, before = folder(tmp_path, "a.png", "b.png", "c.png"), live_server.jobs
    code, out, err = run(source, "-o", tmp_path / "out", "--jobs", "3", *FAITHFUL)
    assert code == 0, err
    results = [f"{name}-2x.png" for name in "abc"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == results
    assert sorted(Path(line).name for line in out.splitlines() if line.endswith(".png")) == results
    assert live_server.jobs == before + 3

    (source / "b.png").write_bytes(png(30, 30))
    (tmp_path / "out" / "c-2x.png").unlink()
    code, out, err = run(source, "-o", tmp_path / "out", *FAITHFUL, "--scale", "2x", "--json")
    assert (code, live_server.jobs) == (0, before + 6), "another setting makes another image"
    code, out, err = run(source, "-o", tmp_path / "out", *FAITHFUL, "--scale", "2", "--json")
    assert (code, live_server.jobs) == (0, before + 6)
    assert {line["status"] for line in json_lines(out)} == {"skipped"}
    (source / "b.png").write_bytes(png(31, 30))
    (tmp_path / "out" / "c-2x.png").unlink()
    code, out, err = run(source, "-o", tmp_path / "out", *FAITHFUL, "--scale", "2", "--json")
    lines = {Path(line["source"]).name: line for line in json_lines(out)}
    assert {name: line["status"] for name, line in lines.items()} == {
        "a.png": "skipped", "b.png": "done", "c.png": "done"
    }  # fmt: skip
    assert (lines["b.png"]["width"], lines["b.png"]["height"]) == (48, 34)
    assert live_server.value("select count(*) from jobs where id = %s", lines["b.png"]["job"]) == 1
    assert live_server.jobs == before + 8
    assert run(source, "-o", tmp_path / "out", *FAITHFUL, "--scale", "2", "--again")[0] == 0
    assert live_server.jobs == before + 11


@pytest.mark.usefixtures("worker")
def test_patterns_expand_and_single_image_is_redone(live_server: LiveServer, run: Run, tmp_path: Path) -> None:
    source, before = folder(tmp_path, "a.png", "a.jpg", "b.gif"), live_server.jobs
    assert run(source / "*.[pj]*g", "-o", tmp_path / "out")[0] == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.jpg-2x.png", "a.png-2x.png"]
    for count in (3, 4):
        assert run(source / "b.gif", "-o", tmp_path / "one.webp")[0] == 0
        assert live_server.jobs == before + count
    code, _, err = run(source / "*.tiff")
    assert code == 2
    assert "Nothing matches" in err


@pytest.mark.usefixtures("worker")
def test_results_are_not_inputs_nor_foreign_files_overwritten(
    live_server: LiveServer, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, before = folder(tmp_path, "a.png", "b.png", "._b.png"), live_server.jobs
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run("~/in/*.png", *FAITHFUL)[0] == 0
    code, _, err = run(*source.glob("[!.]*.png"), *FAITHFUL, "--jobs", "2")  # as a shell names them the second time
    assert code == 0, err
    assert "2 already done." in err
    assert run(source, *FAITHFUL, "--scale", "4")[0] == 0
    names = {"a.png", "b.png", "._b.png", "a-2x.png", "b-2x.png", "a-4x.png", "b-4x.png"}
    assert {path.name for path in source.iterdir()} == names
    assert live_server.jobs == before + 4
    (source / "a-2x.png").write_bytes(png(50, 50))
    code, _, err = run(*source.glob("a*.png"), *FAITHFUL)
    assert code == 2
    assert "would overwrite the input" in " ".join(err.split())
    code, out, _ = run(source, *FAITHFUL, "--json")
    assert code == 1
    assert {Path(line["target"]).name: line["status"] for line in json_lines(out)} == {
        "a-2x.png": "failed", "b-2x.png": "skipped"
    }  # fmt: skip
    assert (source / "a-2x.png").read_bytes() == png(50, 50)
    assert live_server.jobs == before + 4
    assert run(source, *FAITHFUL, "--again")[0] == 0
    assert (source / "a-2x.png").read_bytes() != png(50, 50)


def test_interrupted_run_resumes_and_pays_once(live_server: LiveServer, tmp_path: Path, run: Run) -> None:
    source, before = folder(tmp_path, "a.png", "b.png"), live_server.jobs
    command = [sys.executable, "-m", "hiresfix", "upscale", str(source), "-o", "out", "--jobs", "2", *FAITHFUL]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: live_server.jobs == before + 2)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert time.monotonic() - started < 30
    assert process.returncode == 130
    assert "go on" in err
    assert not (tmp_path / "out").exists()
    for job in live_server.value(
        "select array_agg(id::text) from (select id from jobs order by created_at desc limit 2) j"
    ):
        live_server.finish(job)
    code, _, err = run(source, "-o", "out", *FAITHFUL)
    assert code == 0, err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a-2x.png", "b-2x.png"]
    assert live_server.jobs == before + 2


def test_killed_before_answer_resumes_same_job(
    live_server: LiveServer,
    run: Run,
    worker: None,
    fake_server: FakeServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The worst moment: the server has charged for the job, and the command does not know its id."""
    source, before, killed = folder(tmp_path, "a.png"), live_server.jobs, threading.Event()

    def answer(request: ReceivedRequest) -> Answer:
        response = forward(live_server.url, request)
        if request.path == "/v2/images/upscale":
            killed.wait(60)
        return response

    fake_server.answer = answer
    monkeypatch.setenv("HIRESFIX_URL", fake_server.url)
    command = [sys.executable, "-m", "hiresfix", "upscale", str(source), "-o", "out", *FAITHFUL]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: live_server.jobs == before + 1)
        process.kill()
    killed.set()
    code, _, err = run(source, "-o", "out", *FAITHFUL)
    assert code == 0, err
    assert (tmp_path / "out" / "a-2x.png").stat().st_size
    submitted = [request for request in fake_server.requests if request.path == "/v2/images/upscale"]
    assert len(submitted) == 2
    assert len({request.headers["idempotency-key"] for request in submitted}) == 1
    assert live_server.jobs == before + 1


def test_new_files_are_yielded_once_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, reported = folder(tmp_path), dict[Path, tuple[int, int]]()
    changes: Iterator[Callable[[], object]] = iter(
        [
            lambda: (source / "a.png").write_bytes(b"half"),
            lambda: (source / "a.png").write_bytes(b"half and half"),
            lambda: (source / ".b.png").write_bytes(b"hidden file"),
            lambda: source.rename(tmp_path / "unplugged"),
            lambda: (tmp_path / "unplugged").rename(source),
            lambda: None,
            lambda: (source / "a.png").write_bytes(b"another image"),
            lambda: None,
        ]
    )
    monkeypatch.setattr(upscale, "time", SimpleNamespace(sleep=lambda seconds: next(changes)()))
    new_files = upscale._new_files(source, reported)
    for size in (len(b"half and half"), len(b"another image")):
        assert [path.name for path in next(new_files)] == ["a.png"]
        assert reported[source / "a.png"][0] == size
    reported.clear()
    assert [path.name for path in next(new_files)] == ["a.png"]


def test_watch_retries_after_busy_server(
    run: Run, fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = folder(tmp_path, "a.png")
    busy = json_answer(503, {"error": "Service temporarily unavailable"}, **{"Retry-After": "9999"})
    fake_server.answer = lambda request: (
        busy if len(fake_server.requests) < 3 else json_answer(401, {"error": "Invalid API key"})
    )
    monkeypatch.setenv("HIRESFIX_URL", fake_server.url)
    monkeypatch.setattr(upscale, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(upscale, "WATCH_SECONDS", 0.01)
    code, out, _ = run("--watch", source, "-o", tmp_path / "out", "--json")
    assert code == 4
    assert [line["code"] for line in json_lines(out)] == ["unavailable", "unavailable", "unauthenticated"]
    assert len({request.headers["idempotency-key"] for request in fake_server.requests}) == 1


def test_watch_upscales_new_files(live_server: LiveServer, tmp_path: Path, worker: None) -> None:
    source, lines_read = folder(tmp_path, "a.png"), list[str]()
    command = [sys.executable, "-m", "hiresfix", "upscale", "--watch", str(source), "-o", "out", "--json", *FAITHFUL]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            lines_read.append(process.stdout.readline())
            whole = png(40, 30)
            with (source / "b.png").open("wb") as slow:
                for index in range(0, len(whole), len(whole) // 4 + 1):
                    slow.write(whole[index : index + len(whole) // 4 + 1])
                    slow.flush()
                    time.sleep(0.5)
            lines_read.append(process.stdout.readline())
        finally:
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    lines = [json.loads(line) for line in [*lines_read, *out.splitlines()]]
    assert [(Path(line["source"]).name, line["status"]) for line in lines] == [("a.png", "done"), ("b.png", "done")]


@pytest.mark.parametrize(
    ("status", "body", "code", "name"),
    [
        (400, {"error": "Validation error", "details": {"image": ["Too dark."]}}, 1, "validation_error"),
        (503, {"error": "Service temporarily unavailable", "code": "unavailable"}, 3, "unavailable"),
        (401, {"error": "Invalid API key"}, 4, "unauthenticated"),
        (402, {"error": "Insufficient credits", "creditsRequired": 3, "creditsAvailable": 1}, 5,
         "insufficient_credits"),
    ],
    ids=["refused", "busy", "key", "credits"],
)  # fmt: skip
def test_exit_code_names_kind_of_error(
    run: Run, fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    status: int, body: dict[str, Any], code: int, name: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("HIRESFIX_URL", fake_server.url)
    fake_server.answer = lambda request: json_answer(status, body, **{"Retry-After": "9999"})
    exit_code, out, err = run(folder(tmp_path, "a.png", "b.png"), "--json")
    assert exit_code == code
    lines = json_lines(out)
    is_fatal = code != 1
    assert [line["status"] for line in lines] == ["failed", "not begun" if is_fatal else "failed"]
    assert lines[0]["code"] == name
    assert ("1 more were not started" in err) == is_fatal
    assert len(fake_server.requests) == (1 if is_fatal else 2)
    assert ("1 failed, 1 not started." if is_fatal else "2 failed.") in err


def test_accepted_job_makes_retries_patient(
    run: Run, fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ten failures in a row, where the first submission gets six attempts."""
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(retry, "MAX_BACKOFF", 0.001)
    monkeypatch.setenv("HIRESFIX_URL", fake_server.url)
    broken = [False, *[True] * 10]

    def answer(request: ReceivedRequest) -> Answer | None:
        if request.path == "/v2/images/upscale":
            return None if broken and broken.pop(0) else json_answer(202, {"jobId": "7", "status": "QUEUED"})
        finished = {"id": "7", "status": "COMPLETED", "result": {"images": ["/r.png"]}}
        return (200, {}, b"image") if request.path == "/r.png" else json_answer(200, finished)

    fake_server.answer = answer
    code, _, err = run(folder(tmp_path, "a.png", "b.png"), "-o", "out")
    assert code == 0, err
    assert "2 done." in err
    broken[:] = [True] * 10
    code, _, err = run(folder(tmp_path / "out", "c.png", "d.png"), "-o", "out")
    assert code == 3
    assert "1 failed, 1 not started." in err


def test_failed_job_is_submitted_again_next_run(live_server: LiveServer, run: Run, tmp_path: Path) -> None:
    source, before = folder(tmp_path, "a.png"), live_server.jobs

    def fail() -> None:
        wait_until(lambda: live_server.jobs == before + 1)
        live_server.fail(str(live_server.value("select id from jobs order by created_at desc limit 1")), "It broke.")

    thread = threading.Thread(target=fail)
    thread.start()
    code, _, err = run(source, "-o", "out")
    thread.join()
    assert code == 1
    assert "It broke." in err

    def succeed() -> None:
        wait_until(lambda: live_server.jobs == before + 2)
        live_server.finish(str(live_server.value("select id from jobs order by created_at desc limit 1")))

    thread = threading.Thread(target=succeed)
    thread.start()
    assert run(source, "-o", "out")[0] == 0
    thread.join()


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ((), "Name images"),
        (("in", "--preset", "offline"), "server's operator"),
        (("in", "--strip"), "server's operator"),
        (("in", "--local", "--jobs", "2"), "whole machine"),
        (("--watch", "nowhere"), "not a folder"),
        (("--watch", "in"), "another folder for the results"),
        (("--watch", "in", "-o", "in"), "another folder for the results"),
        (("in", "--scale", "3"), "Expected one of 1, 2, 4, 8"),
    ],
    ids=["nothing", "preset", "strip", "jobs", "watch", "no output", "same", "scale"],
)
def test_wrong_usage_is_refused_before_any_work(
    run: Run, live_server: LiveServer, tmp_path: Path, arguments: tuple[str, ...], hint: str
) -> None:
    folder(tmp_path, "a.png")
    before = live_server.jobs
    code, _, err = run(*arguments)
    assert code == 2
    assert hint in " ".join(err.replace("│", " ").split())
    assert live_server.jobs == before


def test_missing_key_explains_how_to_get_one(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HIRESFIX_API_KEY")
    code, _, err = run(folder(tmp_path, "a.png"))
    assert code == 1
    assert "HIRESFIX_API_KEY" in err


def test_shell_completion_knows_options() -> None:
    environment = {**os.environ, "_HIRESFIX_COMPLETE": "complete_bash", "COMP_WORDS": "hiresfix upscale --rem",
                   "COMP_CWORD": "2"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv[0] = 'hiresfix'; from hiresfix.cli import main; main()"],
        env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "--remote" in done.stdout.split()
