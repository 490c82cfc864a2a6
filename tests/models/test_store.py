"""The model store, with real files and a real server that truncates, changes and rejects."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hiresfix.errors import ConfigurationError, FetchError, HiresfixError, Unreachable, WeightsError
from hiresfix.models import download, weight_files
from hiresfix.models.catalog import WEIGHTS
from hiresfix.models.store import ListedModel, ModelStore
from hiresfix.models.weight_files import WeightKind
from hiresfix.paths import home

LORA = "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight"


def safetensors(name: str = LORA, *, megabytes: float = 1, fill: bytes = b"\x07") -> bytes:
    """Return a file with one tensor."""
    size = int(megabytes * 2**20)
    header = json.dumps({name: {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + fill * size


@dataclass
class Origin:
    """A web server for one file with ranges and versions; its fields make it misbehave."""

    url: str = ""
    body: bytes = b""
    etag: str | None = '"one"'
    cuts: list[int] = field(default_factory=list)
    """Body bytes after which the next answers break off."""
    statuses: list[int] = field(default_factory=list)
    ranges: bool = True
    if_range: bool = True
    """False ignores the version in a range request."""
    media_type: str = "application/octet-stream"
    requests: list[str | None] = field(default_factory=list)


def _handler(origin: Origin) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/elsewhere":  # like model hubs: the file is on another host
                self.send_response(302)
                self.send_header("Location", "/file")
                self.end_headers()
                return
            span = self.headers["Range"]
            origin.requests.append(span)
            status = origin.statuses.pop(0) if origin.statuses else 200
            start = 0
            same = self.headers["If-Range"] in (None, origin.etag) or not origin.if_range
            if status == 200 and span and origin.ranges and same:
                start = int(span.removeprefix("bytes=").removesuffix("-"))
                status = 206 if start < len(origin.body) else 416
            body = origin.body[start:] if status in (200, 206) else b""
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", origin.media_type)
            if origin.etag:
                self.send_header("ETag", origin.etag)
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{len(origin.body) - 1}/{len(origin.body)}")
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body[: origin.cuts.pop(0)] if origin.cuts and status in (200, 206) else body)
            self.close_connection = True

        def log_message(self, *args: object) -> None: ...

    return Handler


@pytest.fixture
def origin() -> Iterator[Origin]:
    origin = Origin(body=safetensors())
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(origin))
    origin.url = f"http://127.0.0.1:{server.server_port}/elsewhere"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield origin
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "RETRY_PAUSES", (0.0, 0.0))


@pytest.fixture
def model(origin: Origin) -> ListedModel:
    return ListedModel(
        name="sharp", kind=WeightKind.LORA, file="sharp.safetensors", url=origin.url, origin="https://example.org/sharp",
        licence="MIT", commercial=True,
    )  # fmt: skip


@pytest.fixture
def store(tmp_path: Path, model: ListedModel) -> ModelStore:
    return ModelStore(tmp_path / "models", {model.name: model})


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- pulling ---


def test_pull_installs_and_records_the_file(store: ModelStore, model: ListedModel, origin: Origin) -> None:
    reports: list[tuple[int, int | None]] = []
    entry = store.pull(model, lambda there, total: reports.append((there, total)))
    assert entry.path.read_bytes() == origin.body
    assert (entry.sha256, entry.bytes, entry.commercial) == (digest(origin.body), len(origin.body), True)
    assert reports[-1] == (len(origin.body), len(origin.body))
    assert [there for there, _ in reports] == sorted(there for there, _ in reports)
    assert store.installed() == {"sharp": entry}
    assert store.locate("sharp", WeightKind.LORA) == entry
    assert store.verify(entry) is None
    names = {path.name for path in store.folder.iterdir() if not path.name.startswith(".")}
    assert names == {"sharp.safetensors", "sharp.json"}


def test_installed_file_is_not_fetched_again(store: ModelStore, model: ListedModel, origin: Origin) -> None:
    assert store.pull(model) == store.pull(model)
    assert len(origin.requests) == 1


def test_broken_connection_resumes(store: ModelStore, model: ListedModel, origin: Origin) -> None:
    origin.cuts = [300_000, 200_000]
    assert store.pull(model).path.read_bytes() == origin.body
    assert origin.requests == [None, "bytes=300000-", "bytes=500000-"]


def test_cancelled_pull_resumes_at_the_next(store: ModelStore, model: ListedModel, origin: Origin) -> None:
    class Stopped(Exception): ...

    def stop(there: int, total: int | None) -> None:
        if there > 400_000:
            raise Stopped

    with pytest.raises(Stopped):
        store.pull(model, stop)
    received = store.partial_bytes(model)
    assert 400_000 < received < len(origin.body)
    assert store.installed() == {}
    assert store.pull(model).path.read_bytes() == origin.body
    assert origin.requests == [None, f"bytes={received}-"]
    assert store.partial_bytes(model) == 0


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("etag", ['"two"', None, 'W/"weak"'])
def test_versions_of_a_file_are_never_mixed(
    store: ModelStore, model: ListedModel, origin: Origin, ranges: bool, etag: str | None
) -> None:
    """Half of one version is on disk; the origin now has another, or never states its version."""
    origin.etag = '"one"' if etag == '"two"' else etag
    _leave_half(store, model, origin)
    origin.body, origin.etag, origin.ranges = safetensors(fill=b"\x08"), etag, ranges
    assert store.pull(model).path.read_bytes() == origin.body


def test_origin_ignoring_if_range_is_detected_by_etag(store: ModelStore, model: ListedModel, origin: Origin) -> None:
    _leave_half(store, model, origin)
    origin.body, origin.etag, origin.if_range = safetensors(fill=b"\x08"), '"two"', False
    assert store.pull(model).path.read_bytes() == origin.body
    assert origin.requests == ["bytes=500000-", None]


def _leave_half(store: ModelStore, model: ListedModel, origin: Origin) -> None:
    origin.cuts, origin.statuses = [500_000], [200, 503, 503, 503]
    with pytest.raises(Unreachable, match="answers 503"):
        store.pull(model)
    assert store.partial_bytes(model) == 500_000
    origin.requests.clear()


def test_known_hash_allows_resuming_without_etag(store: ModelStore, model: ListedModel, origin: Origin) -> None:
    origin.etag = None
    model = replace(model, sha256=digest(origin.body))
    _leave_half(store, model, origin)
    assert store.pull(model).sha256 == model.sha256
    assert origin.requests == ["bytes=500000-"]


def test_part_longer_than_file_restarts(store: ModelStore, model: ListedModel, origin: Origin) -> None:
    model = replace(model, sha256=digest(origin.body))
    store.folder.mkdir()
    (store.folder / "sharp.safetensors.part").write_bytes(origin.body + b"more")
    assert store.pull(model).path.read_bytes() == origin.body


def test_wrong_hash_keeps_nothing(store: ModelStore, model: ListedModel, origin: Origin) -> None:
    wrong = replace(model, sha256="0" * 64)
    with pytest.raises(WeightsError, match=f"its SHA-256 is {digest(origin.body)}, not 0000"):
        store.pull(wrong)
    assert store.installed() == {}
    assert [path.name for path in store.folder.iterdir()] == [".sharp.lock"]


def test_hash_prefix_is_checked_and_full_hash_recorded(store: ModelStore, model: ListedModel, origin: Origin) -> None:
    with pytest.raises(WeightsError, match="not 0000000000"):
        store.pull(replace(model, sha256="0" * 10))
    entry = store.pull(replace(model, sha256=digest(origin.body)[:10]))
    assert entry.sha256 == digest(origin.body)


def test_recorded_hash_is_required_at_second_pull(store: ModelStore, model: ListedModel, origin: Origin) -> None:
    store.pull(model).path.unlink()
    origin.body = safetensors(fill=b"\x09")
    with pytest.raises(WeightsError, match="is not the known sharp"):
        store.pull(model)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (safetensors("decoder.conv_in.weight"), "seems to be a vae, not a lora"),
        (safetensors("conditioner.embedders.0.x"), "seems to be an SDXL checkpoint"),
        (b"<html>gone</html>", "damaged"),
    ],
)
def test_other_kind_of_file_is_not_installed(
    store: ModelStore, model: ListedModel, origin: Origin, body: bytes, message: str
) -> None:
    origin.body = body
    with pytest.raises(WeightsError, match=message):
        store.pull(model)
    assert store.installed() == {}


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (401, FetchError, "requires an account"),
        (403, FetchError, "models add FILE"),
        (404, FetchError, "no longer there"),
        (503, Unreachable, "Try again later"),
        (429, Unreachable, "Try again later"),
    ],
)
def test_rejection_by_origin_says_what_to_do(
    store: ModelStore, model: ListedModel, origin: Origin, status: int, error: type[HiresfixError], message: str
) -> None:
    origin.statuses = [status] * 9
    with pytest.raises(error, match=message):
        store.pull(model)
    assert len(origin.requests) == (3 if error is Unreachable else 1)


def test_web_page_instead_of_file_is_detected(store: ModelStore, model: ListedModel, origin: Origin) -> None:
    origin.media_type = "text/html; charset=utf-8"
    with pytest.raises(FetchError, match="sends a web page instead of a file"):
        store.pull(model)


def test_unreachable_origin_says_how_to_add_file(store: ModelStore, model: ListedModel) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refuses
        closed = replace(model, url=f"http://127.0.0.1:{taken.getsockname()[1]}/file")
        with pytest.raises(Unreachable, match=r"127.0.0.1 cannot be reached .*goes on where it stopped.*models add"):
            store.pull(closed)


def test_full_disk_is_detected_before_download(
    store: ModelStore, model: ListedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(WeightsError, match=r"0\.00 GB free.*HIRESFIX_HOME"):
        store.pull(model)
    assert store.partial_bytes(model) == 0


def test_concurrent_pulls_of_one_name_are_refused(store: ModelStore, model: ListedModel) -> None:
    messages: list[str] = []

    def again(there: int, total: int | None) -> None:
        if not messages:
            with pytest.raises(WeightsError, match="Another process is working on sharp") as caught:
                store.pull(model)
            messages.append(caught.value.message)

    store.pull(model, again)
    assert len(messages) == 1


# --- adding, checking, removing ---


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.safetensors"
    path.write_bytes(safetensors(megabytes=0.1))
    return path


def test_added_file_is_installed_under_its_name(store: ModelStore, mine: Path) -> None:
    entry = store.add(mine, name="own_v1.2", licence="my own", commercial=False)
    assert (entry.kind, entry.path.name, entry.licence) == (WeightKind.LORA, "own_v1.2.safetensors", "my own")
    mine.unlink()
    assert store.verify(store.locate("own_v1.2")) is None


def test_added_listed_file_gets_the_listed_licence(
    store: ModelStore, model: ListedModel, origin: Origin, mine: Path
) -> None:
    mine.write_bytes(origin.body)
    entry = store.add(mine, name="sharp", licence=None, commercial=None)
    assert (entry.licence, entry.commercial, entry.path.name) == ("MIT", True, "sharp.safetensors")
    assert store.pull(model) == entry
    assert origin.requests == []


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A ControlNet in diffusers' layout, with a symbolic link as in the hub's cache, and hidden files."""
    folder = tmp_path / "fine.tile"
    (folder / "deeper").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("hidden")
    (folder / "config.json").write_text(json.dumps({"_class_name": "ControlNetModel"}))
    (tmp_path / "blob").write_bytes(safetensors())
    (folder / "deeper" / "model.safetensors").symlink_to(tmp_path / "blob")
    return folder


def test_folder_is_added_verified_and_removed(store: ModelStore, model_folder: Path) -> None:
    entry = store.add(model_folder, name="tile", licence="my own", commercial=True)
    copied = [path.relative_to(entry.path).as_posix() for path in weight_files.files_of(entry.path)]
    assert (entry.kind, entry.path.name, copied) == (
        WeightKind.CONTROLNET, "tile", ["config.json", "deeper/model.safetensors"]
    )  # fmt: skip
    assert entry.bytes == sum(path.stat().st_size for path in entry.path.rglob("*.*") if path.is_file())
    assert entry.sha256 == weight_files.fingerprint(model_folder)
    assert not (entry.path / "deeper" / "model.safetensors").is_symlink()
    read: list[int] = []
    assert store.verify(store.locate("tile", WeightKind.CONTROLNET), read.append) is None
    assert sum(read) == entry.bytes
    (entry.path / "config.json").unlink()
    assert "is not what was installed" in (store.verify(entry) or "")
    store.remove("tile")
    assert not entry.path.exists()
    assert (model_folder / "deeper" / "model.safetensors").is_file()
    assert [path.name for path in store.folder.iterdir() if path.suffix != ".lock"] == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "a folder with a UNet2DConditionModel"),
        ([], "a folder with a None"),
        (None, "a folder without a model_index.json or config.json"),
    ],
)
def test_folder_without_model_is_not_added(store: ModelStore, model_folder: Path, config: object, message: str) -> None:
    (model_folder / "config.json").write_text("{" if config is None else json.dumps(config))
    with pytest.raises(WeightsError, match=message):
        store.add(model_folder, name="own", licence="x", commercial=True)
    assert store.installed() == {}


def test_folder_cannot_replace_a_listed_file(store: ModelStore, model_folder: Path, model: ListedModel) -> None:
    with pytest.raises(WeightsError, match="Choose another name"):
        store.add(model_folder, name=model.name, licence=None, commercial=None)


def test_pickle_kind_comes_from_tensor_names(store: ModelStore, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from hiresfix.engine.weights.superres_files import read_tensors

    contents: dict[WeightKind, Any] = {
        WeightKind.ENLARGER: {"params_ema": {"conv_first.weight": torch.ones(1)}},
        WeightKind.EMBEDDING: {"string_to_param": {"*": torch.ones(2, 768)}, "name": "bad"},
        WeightKind.CONTROLNET: {"control_model.time_embed.0.weight": torch.ones(1)},
        WeightKind.CHECKPOINT: {
            "state_dict": {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(2, 4, 3, 3)}
        },
    }
    for kind, content in contents.items():
        torch.save(content, tmp_path / "file.pt")
        entry = store.add(
            tmp_path / "file.pt", name=f"a-{kind}", licence="x", commercial=True, read_pickle=read_tensors
        )
        assert entry.kind is kind


def test_pickle_needs_a_reader(store: ModelStore, tmp_path: Path) -> None:
    (tmp_path / "file.pt").write_bytes(b"")
    with pytest.raises(WeightsError, match="is a pickle"):
        store.add(tmp_path / "file.pt", name="a", licence="x", commercial=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(safetensors("unknown")), "a file of an unknown kind"),
        (lambda path: path.write_bytes(safetensors()[:-1]), "damaged or cut off"),
        (lambda path: path.write_bytes(b""), "damaged or cut off"),
        (lambda path: path.unlink(), "There is no file"),
    ],
)
def test_unusable_file_is_not_added(
    store: ModelStore, mine: Path, change: Callable[[Path], None], message: str
) -> None:
    change(mine)
    with pytest.raises(WeightsError, match=message):
        store.add(mine, name="own", licence="x", commercial=True)
    assert store.installed() == {}


@pytest.mark.parametrize("name", ["../own", ".own", "", "a/b", "a b", WEIGHTS[0].name])
def test_invalid_or_reserved_name_is_rejected(store: ModelStore, mine: Path, name: str) -> None:
    with pytest.raises(WeightsError, match="cannot be a model's name"):
        store.add(mine, name=name, licence="x", commercial=True)


def test_own_file_needs_licence_and_unique_name(store: ModelStore, mine: Path) -> None:
    with pytest.raises(WeightsError, match="The licence of the file is not known"):
        store.add(mine, name="own", licence="x", commercial=None)
    store.add(mine, name="own", licence="x", commercial=True)
    with pytest.raises(WeightsError, match="models remove own"):
        store.add(mine, name="own", licence="x", commercial=True)
    store.remove("own")
    assert store.installed() == {}
    assert mine.is_file()
    assert store.add(mine, name="own", licence="x", commercial=True).name == "own"


def test_verify_detects_changed_truncated_and_missing_files(store: ModelStore, model: ListedModel) -> None:
    entry = store.pull(model)
    data = bytearray(entry.path.read_bytes())
    data[-1] ^= 1
    for content in (bytes(data), bytes(data[:-1])):
        entry.path.write_bytes(content)
        assert "is not what was installed" in (store.verify(entry) or "")
    entry.path.unlink()
    assert "is gone" in (store.verify(entry) or "")
    with pytest.raises(WeightsError, match="hiresfix models pull sharp"):
        store.locate("sharp")


def test_locate_errors_say_what_to_do(store: ModelStore, model: ListedModel) -> None:
    with pytest.raises(WeightsError, match="models list"):
        store.locate("nothing")
    store.pull(model)
    with pytest.raises(WeightsError, match="is a lora, not a vae"):
        store.locate("sharp", WeightKind.VAE)


def test_damaged_record_is_named(store: ModelStore, model: ListedModel) -> None:
    store.pull(model)
    for content in ("{", '{"file": "../../etc/passwd", "kind": "lora"}', "[]"):
        (store.folder / "sharp.json").write_text(content)
        with pytest.raises(WeightsError, match=r"sharp\.json is damaged"):
            store.installed()


# --- lists ---


def test_shipped_list_is_complete_and_consistent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIRESFIX_HOME", str(tmp_path))
    listed = ModelStore.at_home().listed
    assert {"juggernaut-reborn", "control-tile", "vae-ft-mse", "4x-ultrasharp", "more_details"} <= listed.keys()
    assert not listed.keys() & {weight.name for weight in WEIGHTS}
    assert listed["4x-ultrasharp"].commercial is False
    for model in listed.values():
        assert model.url.startswith(model.origin + "/resolve/")
        assert model.url.endswith("/" + model.file)
        assert model.licence
        assert model.sha256 is None or re.fullmatch("[0-9a-f]{10}|[0-9a-f]{64}", model.sha256)
        assert (model.bytes is None) == (model.sha256 is None or len(model.sha256) < 64)
        # Prompts name LoRAs and embeddings by their file name.
        assert model.kind not in (WeightKind.LORA, WeightKind.EMBEDDING) or Path(model.file).stem == model.name


OWN = """
[[model]]
name = "{name}"
kind = "lora"
file = "{file}"
url = "{url}"
origin = "https://example.org"
licence = "MIT"
"""


def test_operator_list_takes_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIRESFIX_HOME", str(tmp_path))
    text = "".join(
        OWN.format(name=name, file="a.safetensors", url="https://example.org/a") for name in ("house", "vae-ft-mse")
    )
    (tmp_path / "models.toml").write_text(text)
    listed = ModelStore.at_home().listed
    assert (listed["house"].url, listed["vae-ft-mse"].kind) == ("https://example.org/a", WeightKind.LORA)
    assert "juggernaut-reborn" in listed


@pytest.mark.parametrize(
    "change",
    [{"name": "../x"}, {"file": "../x.safetensors"}, {"file": "x.exe"}, {"url": "file:///etc/passwd"}, {"name": 'a"'}],
)
def test_invalid_list_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, str]) -> None:
    monkeypatch.setenv("HIRESFIX_HOME", str(tmp_path))
    (tmp_path / "models.toml").write_text(
        OWN.format(**{"name": "a", "file": "a.safetensors", "url": "https://example.org/a"} | change)
    )
    with pytest.raises(ConfigurationError, match=r"models\.toml is invalid"):
        ModelStore.at_home()


def test_home_variable_unless_empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HIRESFIX_HOME", str(tmp_path))
    assert home() == tmp_path
    monkeypatch.setenv("HIRESFIX_HOME", "")
    assert home() != Path()


# --- files inspected without loading tensors ---


def test_hash_is_cached_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"one")
    read: list[str] = []

    def counted(path: Path) -> str:
        read.append(path.name)
        return digest(path.read_bytes())

    monkeypatch.setattr(weight_files, "digest", counted)
    assert weight_files.fingerprint(path) == weight_files.fingerprint(path) == digest(b"one")
    assert len(read) == 1
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert weight_files.fingerprint(path) == digest(b"two")
    (tmp_path / ".a.safetensors.sha256").write_text("{")
    assert weight_files.fingerprint(path) == digest(b"two")
    assert len(read) == 3


@pytest.mark.parametrize("keep", [0, 3, 8, 60, -1])
def test_header_that_does_not_fit_is_rejected(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors())
    assert weight_files.read_header(path) == {LORA: (2**20,)}
    path.write_bytes(safetensors()[:keep])
    with pytest.raises(WeightsError, match="damaged or cut off"):
        weight_files.read_header(path)


@pytest.mark.parametrize(
    "tensor",
    [
        {"shape": [2**40, 2**40]},
        {"shape": [3]},
        {"shape": [-4, -1]},
        {"shape": [2.0, 2.0]},
        {"shape": "abcd"},
        {"shape": [[4]]},
        {"dtype": "F64"},
        {"dtype": "Q"},
        {"dtype": 7},
        {"data_offsets": [0]},
        {"data_offsets": [-16, 0]},
        {"name": "not a part of it"},
    ],
    ids=str,
)
def test_header_with_contradictory_tensor_is_rejected(
    store: ModelStore, tmp_path: Path, tensor: dict[str, Any]
) -> None:
    valid = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    path = tmp_path / "a.safetensors"
    for entry in (valid, valid | tensor):
        header = json.dumps({"model.diffusion_model.input_blocks.0.0.weight": entry}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
        if entry is valid:
            assert list(weight_files.read_header(path).values()) == [(4,)]
    with pytest.raises(WeightsError, match="damaged or cut off"):
        store.add(path, name="a", licence="test", commercial=True)


@pytest.mark.parametrize(
    ("dtype", "width"), [("BF16", 2), ("F8_E4M3", 1), ("BOOL", 1), ("I64", 8), ("F16", 2), ("U8", 1)]
)
def test_header_reads_every_number_type(tmp_path: Path, dtype: str, width: int) -> None:
    path = tmp_path / "a.safetensors"
    entry = {"dtype": dtype, "shape": [3, 2], "data_offsets": [0, 6 * width]}
    header = json.dumps({"__metadata__": {"a": "b"}, "t": entry}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(6 * width))
    assert weight_files.read_header(path) == {"t": (3, 2)}


@pytest.mark.parametrize(
    ("shape", "is_one"),
    [((768,), True), ((8, 768), True), ((76, 768), False), ((8, 32), False), ((1, 8, 768), False), ((5000,), False)],
)
def test_single_wide_tensor_is_an_embedding(shape: tuple[int, ...], is_one: bool) -> None:
    """Some programs save an embedding under the word it was trained for."""
    kind, _ = weight_files.describe({"<old-camera>": shape})
    assert (kind is WeightKind.EMBEDDING) is is_one
    assert weight_files.describe({"<old-camera>": shape, "another": shape})[0] is None


@pytest.mark.parametrize("header", [b"[]", b"{" * 50, b'{"a": 1}', b'{"a": {"shape": 1, "data_offsets": [0, 0]}}'])
def test_nonsense_header_is_rejected(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(WeightsError, match="damaged or cut off"):
        weight_files.read_header(path)
