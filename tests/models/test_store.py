"""The store of weight files: real files, a real server on loopback that cuts, changes and refuses."""

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
from hiresfix.models.store import Offer, Store
from hiresfix.models.weight_files import Kind
from hiresfix.paths import home

LORA = "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight"


def safetensors(name: str = LORA, *, megabytes: float = 1, fill: bytes = b"\x07") -> bytes:
    """A file of the format with one tensor."""
    size = int(megabytes * 2**20)
    header = json.dumps({name: {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + fill * size


@dataclass
class Origin:
    """A web server that gives one file, with ranges and versions, as badly as told."""

    url: str = ""
    body: bytes = b""
    etag: str | None = '"one"'
    cuts: list[int] = field(default_factory=list)
    """After how many bytes of the body the next answers break off."""
    statuses: list[int] = field(default_factory=list)
    ranges: bool = True
    if_range: bool = True
    """Whether it minds the version that a range is asked of."""
    media_type: str = "application/octet-stream"
    asked: list[str | None] = field(default_factory=list)


def _handler(origin: Origin) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/elsewhere":  # as hubs do: the file lies with somebody else
                self.send_response(302)
                self.send_header("Location", "/file")
                self.end_headers()
                return
            span = self.headers["Range"]
            origin.asked.append(span)
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
    found = Origin(body=safetensors())
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(found))
    found.url = f"http://127.0.0.1:{server.server_port}/elsewhere"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0))


@pytest.fixture
def offer(origin: Origin) -> Offer:
    return Offer(
        name="sharp", kind=Kind.LORA, file="sharp.safetensors", url=origin.url, origin="https://example.org/sharp",
        licence="MIT", commercial=True,
    )  # fmt: skip


@pytest.fixture
def store(tmp_path: Path, offer: Offer) -> Store:
    return Store(tmp_path / "models", {offer.name: offer})


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# Pulling.


def test_a_pull_brings_the_file_and_records_what_came(store: Store, offer: Offer, origin: Origin) -> None:
    said: list[tuple[int, int | None]] = []
    entry = store.pull(offer, lambda there, total: said.append((there, total)))
    assert entry.path.read_bytes() == origin.body
    assert (entry.sha256, entry.bytes, entry.commercial) == (digest(origin.body), len(origin.body), True)
    assert said[-1] == (len(origin.body), len(origin.body))
    assert [there for there, _ in said] == sorted(there for there, _ in said)
    assert store.installed() == {"sharp": entry}
    assert store.locate("sharp", Kind.LORA) == entry
    assert store.verify(entry) is None
    kept = {path.name for path in store.folder.iterdir() if not path.name.startswith(".")}
    assert kept == {"sharp.safetensors", "sharp.json"}


def test_an_installed_file_is_not_fetched_again(store: Store, offer: Offer, origin: Origin) -> None:
    assert store.pull(offer) == store.pull(offer)
    assert len(origin.asked) == 1


def test_a_cut_connection_is_taken_up_where_it_broke(store: Store, offer: Offer, origin: Origin) -> None:
    origin.cuts = [300_000, 200_000]
    assert store.pull(offer).path.read_bytes() == origin.body
    assert origin.asked == [None, "bytes=300000-", "bytes=500000-"]


def test_a_pull_that_was_given_up_goes_on_at_the_next(store: Store, offer: Offer, origin: Origin) -> None:
    class Stopped(Exception): ...

    def stop(there: int, total: int | None) -> None:
        if there > 400_000:
            raise Stopped

    with pytest.raises(Stopped):
        store.pull(offer, stop)
    begun = store.begun(offer)
    assert 400_000 < begun < len(origin.body)
    assert store.installed() == {}
    assert store.pull(offer).path.read_bytes() == origin.body
    assert origin.asked == [None, f"bytes={begun}-"]
    assert store.begun(offer) == 0


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("etag", ['"two"', None, 'W/"weak"'])
def test_two_versions_of_a_file_are_never_mixed(
    store: Store, offer: Offer, origin: Origin, ranges: bool, etag: str | None
) -> None:
    """Half of one version is here; the origin has another by now, or never says which it is."""
    origin.etag = '"one"' if etag == '"two"' else etag
    _leave_half(store, offer, origin)
    origin.body, origin.etag, origin.ranges = safetensors(fill=b"\x08"), etag, ranges
    assert store.pull(offer).path.read_bytes() == origin.body


def test_an_origin_that_ignores_the_version_asked_for_is_caught_by_the_one_it_names(
    store: Store, offer: Offer, origin: Origin
) -> None:
    _leave_half(store, offer, origin)
    origin.body, origin.etag, origin.if_range = safetensors(fill=b"\x08"), '"two"', False
    assert store.pull(offer).path.read_bytes() == origin.body
    assert origin.asked == ["bytes=500000-", None]


def _leave_half(store: Store, offer: Offer, origin: Origin) -> None:
    origin.cuts, origin.statuses = [500_000], [200, 503, 503, 503]
    with pytest.raises(Unreachable, match="answers 503"):
        store.pull(offer)
    assert store.begun(offer) == 500_000
    origin.asked.clear()


def test_a_known_hash_allows_to_go_on_without_a_version(store: Store, offer: Offer, origin: Origin) -> None:
    origin.etag = None
    offer = replace(offer, sha256=digest(origin.body))
    _leave_half(store, offer, origin)
    assert store.pull(offer).sha256 == offer.sha256
    assert origin.asked == ["bytes=500000-"]


def test_a_part_longer_than_the_file_starts_anew(store: Store, offer: Offer, origin: Origin) -> None:
    offer = replace(offer, sha256=digest(origin.body))
    store.folder.mkdir()
    (store.folder / "sharp.safetensors.part").write_bytes(origin.body + b"more")
    assert store.pull(offer).path.read_bytes() == origin.body


def test_a_wrong_hash_keeps_nothing(store: Store, offer: Offer, origin: Origin) -> None:
    wrong = replace(offer, sha256="0" * 64)
    with pytest.raises(WeightsError, match=f"its SHA-256 is {digest(origin.body)}, not 0000"):
        store.pull(wrong)
    assert store.installed() == {}
    assert [path.name for path in store.folder.iterdir()] == [".sharp.lock"]


def test_the_beginning_of_a_hash_is_held_to_and_the_whole_is_recorded(
    store: Store, offer: Offer, origin: Origin
) -> None:
    with pytest.raises(WeightsError, match="not 0000000000"):
        store.pull(replace(offer, sha256="0" * 10))
    entry = store.pull(replace(offer, sha256=digest(origin.body)[:10]))
    assert entry.sha256 == digest(origin.body)


def test_what_was_recorded_at_the_first_pull_is_asked_of_the_second(store: Store, offer: Offer, origin: Origin) -> None:
    store.pull(offer).path.unlink()
    origin.body = safetensors(fill=b"\x09")
    with pytest.raises(WeightsError, match="is not the file that is known by that name"):
        store.pull(offer)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (safetensors("decoder.conv_in.weight"), "seems to be a vae, not a lora"),
        (safetensors("conditioner.embedders.0.x"), "seems to be an SDXL checkpoint"),
        (b"<html>gone</html>", "damaged"),
    ],
)
def test_another_kind_of_file_is_not_installed(
    store: Store, offer: Offer, origin: Origin, body: bytes, message: str
) -> None:
    origin.body = body
    with pytest.raises(WeightsError, match=message):
        store.pull(offer)
    assert store.installed() == {}


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (401, FetchError, "wants an account"),
        (403, FetchError, "models add FILE"),
        (404, FetchError, "not there any more"),
        (503, Unreachable, "Try again later"),
        (429, Unreachable, "Try again later"),
    ],
)
def test_a_refusal_says_what_to_do(
    store: Store, offer: Offer, origin: Origin, status: int, error: type[HiresfixError], message: str
) -> None:
    origin.statuses = [status] * 9
    with pytest.raises(error, match=message):
        store.pull(offer)
    assert len(origin.asked) == (3 if error is Unreachable else 1)


def test_a_page_instead_of_a_file_is_told(store: Store, offer: Offer, origin: Origin) -> None:
    origin.media_type = "text/html; charset=utf-8"
    with pytest.raises(FetchError, match="sends a page instead of a file"):
        store.pull(offer)


def test_without_a_connection_it_says_how_to_bring_the_file(store: Store, offer: Offer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refuses
        closed = replace(offer, url=f"http://127.0.0.1:{taken.getsockname()[1]}/file")
        with pytest.raises(Unreachable, match=r"127.0.0.1 cannot be reached .*goes on where it stopped.*models add"):
            store.pull(closed)


def test_a_full_disk_is_told_before_it_is_full(store: Store, offer: Offer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(WeightsError, match=r"0\.00 GB free.*HIRESFIX_HOME"):
        store.pull(offer)
    assert store.begun(offer) == 0


def test_two_pulls_of_one_name_do_not_meet(store: Store, offer: Offer) -> None:
    met: list[str] = []

    def again(there: int, total: int | None) -> None:
        if not met:
            with pytest.raises(WeightsError, match="Another process is at work on sharp") as caught:
                store.pull(offer)
            met.append(caught.value.message)

    store.pull(offer, again)
    assert len(met) == 1


# Adding, checking, removing.


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.safetensors"
    path.write_bytes(safetensors(megabytes=0.1))
    return path


def test_an_added_file_is_installed_under_its_name(store: Store, mine: Path) -> None:
    entry = store.add(mine, name="own_v1.2", licence="my own", commercial=False)
    assert (entry.kind, entry.path.name, entry.licence) == (Kind.LORA, "own_v1.2.safetensors", "my own")
    mine.unlink()
    assert store.verify(store.locate("own_v1.2")) is None


def test_a_file_of_the_list_fetched_elsewhere_gets_the_lists_licence(
    store: Store, offer: Offer, origin: Origin, mine: Path
) -> None:
    mine.write_bytes(origin.body)
    entry = store.add(mine, name="sharp", licence=None, commercial=None)
    assert (entry.licence, entry.commercial, entry.path.name) == ("MIT", True, "sharp.safetensors")
    assert store.pull(offer) == entry
    assert origin.asked == []


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """As diffusers lays a ControlNet out, with a link as its hub's cache has, and what an editor left behind."""
    folder = tmp_path / "fine.tile"
    (folder / "deeper").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("nobody's business")
    (folder / "config.json").write_text(json.dumps({"_class_name": "ControlNetModel"}))
    (tmp_path / "blob").write_bytes(safetensors())
    (folder / "deeper" / "model.safetensors").symlink_to(tmp_path / "blob")
    return folder


def test_a_folder_is_added_verified_and_removed_as_a_file_is(store: Store, model_folder: Path) -> None:
    entry = store.add(model_folder, name="tile", licence="my own", commercial=True)
    copied = [path.relative_to(entry.path).as_posix() for path in weight_files.files_of(entry.path)]
    assert (entry.kind, entry.path.name, copied) == (
        Kind.CONTROLNET, "tile", ["config.json", "deeper/model.safetensors"]
    )  # fmt: skip
    assert entry.bytes == sum(path.stat().st_size for path in entry.path.rglob("*.*") if path.is_file())
    assert entry.sha256 == weight_files.fingerprint(model_folder)
    assert not (entry.path / "deeper" / "model.safetensors").is_symlink()
    read: list[int] = []
    assert store.verify(store.locate("tile", Kind.CONTROLNET), read.append) is None
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
def test_a_folder_that_is_no_model_is_not_added(store: Store, model_folder: Path, config: object, message: str) -> None:
    (model_folder / "config.json").write_text("{" if config is None else json.dumps(config))
    with pytest.raises(WeightsError, match=message):
        store.add(model_folder, name="own", licence="x", commercial=True)
    assert store.installed() == {}


def test_a_folder_is_not_taken_for_a_file_of_the_lists(store: Store, model_folder: Path, offer: Offer) -> None:
    with pytest.raises(WeightsError, match="Choose another name"):
        store.add(model_folder, name=offer.name, licence=None, commercial=None)


def test_a_pickle_is_told_by_the_names_in_it(store: Store, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from hiresfix.engine.weights.superres_files import read_tensors

    contents: dict[Kind, Any] = {
        Kind.ENLARGER: {"params_ema": {"conv_first.weight": torch.ones(1)}},
        Kind.EMBEDDING: {"string_to_param": {"*": torch.ones(2, 768)}, "name": "bad"},
        Kind.CONTROLNET: {"control_model.time_embed.0.weight": torch.ones(1)},
        Kind.CHECKPOINT: {"state_dict": {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(2, 4, 3, 3)}},
    }
    for kind, content in contents.items():
        torch.save(content, tmp_path / "file.pt")
        entry = store.add(
            tmp_path / "file.pt", name=f"a-{kind}", licence="x", commercial=True, read_pickle=read_tensors
        )
        assert entry.kind is kind


def test_a_pickle_needs_a_reader(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file.pt").write_bytes(b"")
    with pytest.raises(WeightsError, match="is a pickle"):
        store.add(tmp_path / "file.pt", name="a", licence="x", commercial=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(safetensors("unknown")), "nothing that is known here"),
        (lambda path: path.write_bytes(safetensors()[:-1]), "damaged or cut off"),
        (lambda path: path.write_bytes(b""), "damaged or cut off"),
        (lambda path: path.unlink(), "There is no file"),
    ],
)
def test_a_file_that_cannot_be_used_is_not_added(
    store: Store, mine: Path, change: Callable[[Path], None], message: str
) -> None:
    change(mine)
    with pytest.raises(WeightsError, match=message):
        store.add(mine, name="own", licence="x", commercial=True)
    assert store.installed() == {}


@pytest.mark.parametrize("name", ["../own", ".own", "", "a/b", "a b", WEIGHTS[0].name])
def test_a_name_that_is_none_or_taken_is_refused(store: Store, mine: Path, name: str) -> None:
    with pytest.raises(WeightsError, match="cannot be a model's name"):
        store.add(mine, name=name, licence="x", commercial=True)


def test_an_own_file_needs_a_licence_and_a_name_of_its_own(store: Store, mine: Path) -> None:
    with pytest.raises(WeightsError, match="Say the file's licence"):
        store.add(mine, name="own", licence="x", commercial=None)
    store.add(mine, name="own", licence="x", commercial=True)
    with pytest.raises(WeightsError, match="models remove own"):
        store.add(mine, name="own", licence="x", commercial=True)
    store.remove("own")
    assert store.installed() == {}
    assert mine.is_file()
    assert store.add(mine, name="own", licence="x", commercial=True).name == "own"


def test_verify_finds_a_changed_a_cut_and_a_missing_file(store: Store, offer: Offer) -> None:
    entry = store.pull(offer)
    data = bytearray(entry.path.read_bytes())
    data[-1] ^= 1
    for content in (bytes(data), bytes(data[:-1])):
        entry.path.write_bytes(content)
        assert "is not what was installed" in (store.verify(entry) or "")
    entry.path.unlink()
    assert "is gone" in (store.verify(entry) or "")
    with pytest.raises(WeightsError, match="hiresfix models pull sharp"):
        store.locate("sharp")


def test_what_is_not_installed_or_of_another_kind_says_what_to_do(store: Store, offer: Offer) -> None:
    with pytest.raises(WeightsError, match="models list"):
        store.locate("nothing")
    store.pull(offer)
    with pytest.raises(WeightsError, match="is a lora, not a vae"):
        store.locate("sharp", Kind.VAE)


def test_a_damaged_record_is_named(store: Store, offer: Offer) -> None:
    store.pull(offer)
    for content in ("{", '{"file": "../../etc/passwd", "kind": "lora"}', "[]"):
        (store.folder / "sharp.json").write_text(content)
        with pytest.raises(WeightsError, match=r"sharp\.json is damaged"):
            store.installed()


# The lists.


def test_the_shipped_list_is_complete_and_invents_no_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIRESFIX_HOME", str(tmp_path))
    offers = Store.at_home().offers
    assert {"juggernaut-reborn", "control-tile", "vae-ft-mse", "4x-ultrasharp", "more_details"} <= offers.keys()
    assert not offers.keys() & {weight.name for weight in WEIGHTS}
    assert offers["4x-ultrasharp"].commercial is False
    for offer in offers.values():
        assert offer.url.startswith(offer.origin + "/resolve/")
        assert offer.url.endswith("/" + offer.file)
        assert offer.licence
        assert offer.sha256 is None or re.fullmatch("[0-9a-f]{10}|[0-9a-f]{64}", offer.sha256)
        assert (offer.bytes is None) == (offer.sha256 is None or len(offer.sha256) < 64)
        # Prompts call LoRAs and embeddings by the name of their file.
        assert offer.kind not in (Kind.LORA, Kind.EMBEDDING) or Path(offer.file).stem == offer.name


OWN = """
[[model]]
name = "{name}"
kind = "lora"
file = "{file}"
url = "{url}"
origin = "https://example.org"
licence = "MIT"
"""


def test_the_operators_list_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIRESFIX_HOME", str(tmp_path))
    text = "".join(
        OWN.format(name=name, file="a.safetensors", url="https://example.org/a") for name in ("house", "vae-ft-mse")
    )
    (tmp_path / "models.toml").write_text(text)
    offers = Store.at_home().offers
    assert (offers["house"].url, offers["vae-ft-mse"].kind) == ("https://example.org/a", Kind.LORA)
    assert "juggernaut-reborn" in offers


@pytest.mark.parametrize(
    "change",
    [{"name": "../x"}, {"file": "../x.safetensors"}, {"file": "x.exe"}, {"url": "file:///etc/passwd"}, {"name": 'a"'}],
)
def test_a_wrong_list_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, str]) -> None:
    monkeypatch.setenv("HIRESFIX_HOME", str(tmp_path))
    (tmp_path / "models.toml").write_text(
        OWN.format(**{"name": "a", "file": "a.safetensors", "url": "https://example.org/a"} | change)
    )
    with pytest.raises(ConfigurationError, match=r"models\.toml is wrong"):
        Store.at_home()


def test_home_is_the_variable_unless_it_is_empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HIRESFIX_HOME", str(tmp_path))
    assert home() == tmp_path
    monkeypatch.setenv("HIRESFIX_HOME", "")
    assert home() != Path()


# Files told without reading their numbers.


def test_a_hash_is_computed_once_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_a_header_that_does_not_fit_its_file_is_told(tmp_path: Path, keep: int) -> None:
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
def test_a_header_that_lies_about_a_tensor_is_told(store: Store, tmp_path: Path, tensor: dict[str, Any]) -> None:
    told = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    path = tmp_path / "a.safetensors"
    for entry in (told, told | tensor):
        header = json.dumps({"model.diffusion_model.input_blocks.0.0.weight": entry}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
        if entry is told:
            assert list(weight_files.read_header(path).values()) == [(4,)]
    with pytest.raises(WeightsError, match="damaged or cut off"):
        store.add(path, name="a", licence="test", commercial=True)


@pytest.mark.parametrize(
    ("dtype", "width"), [("BF16", 2), ("F8_E4M3", 1), ("BOOL", 1), ("I64", 8), ("F16", 2), ("U8", 1)]
)
def test_a_header_of_any_type_of_number_is_read(tmp_path: Path, dtype: str, width: int) -> None:
    path = tmp_path / "a.safetensors"
    entry = {"dtype": dtype, "shape": [3, 2], "data_offsets": [0, 6 * width]}
    header = json.dumps({"__metadata__": {"a": "b"}, "t": entry}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(6 * width))
    assert weight_files.read_header(path) == {"t": (3, 2)}


@pytest.mark.parametrize(
    ("shape", "is_one"),
    [((768,), True), ((8, 768), True), ((76, 768), False), ((8, 32), False), ((1, 8, 768), False), ((5000,), False)],
)
def test_a_lone_tensor_is_an_embedding_if_it_is_as_wide_as_one(shape: tuple[int, ...], is_one: bool) -> None:
    """Some programs save it under the word that it was trained for."""
    kind, _ = weight_files.describe({"<old-camera>": shape})
    assert (kind is Kind.EMBEDDING) is is_one
    assert weight_files.describe({"<old-camera>": shape, "another": shape})[0] is None


@pytest.mark.parametrize("header", [b"[]", b"{" * 50, b'{"a": 1}', b'{"a": {"shape": 1, "data_offsets": [0, 0]}}'])
def test_a_header_of_nonsense_is_told(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(WeightsError, match="damaged or cut off"):
        weight_files.read_header(path)
