"""Hostile files: each decodes to the size in its header or is refused with a message; nothing else happens."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterable, Iterator

import pytest

from hiresfix.errors import ImageError
from hiresfix.images import ImageLimits
from hiresfix.models import pricing
from hiresfix.server.sandbox.client import DecodingAborted, Sandbox
from tests import hostile_images
from tests.server.conftest import Api

MEMORY = 400 * 1024 * 1024
"""Far less than the bytes that the bombs claim; the largest of the files is 16 MB."""
SECONDS = 10


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    limits = ImageLimits(max_input_megapixels=4)
    with Sandbox(limits, memory=MEMORY, processor_seconds=SECONDS, wall_seconds=60) as opened:
        yield opened


def outcome(sandbox: Sandbox, data: bytes) -> str | None:
    """What is wrong with how a file was treated."""
    try:
        header = sandbox.probe(data)
        size = sandbox.decode(data).size
    except DecodingAborted as error:
        return f"stopped the decoder: {error.message}"
    except ImageError as error:
        return None if error.message.endswith(".") else f"refused without advice: {error.message}"
    return None if size == header.size else f"is {size}, the header says {header.size}"


def faults(sandbox: Sandbox, files: Iterable[tuple[str, bytes]]) -> dict[str, str]:
    outcomes = ((name, outcome(sandbox, data)) for name, data in files)
    return {name: fault for name, fault in outcomes if fault}


@pytest.mark.parametrize("family", ["truncated", "crafted"])
def test_hostile_files_decode_or_are_refused(sandbox: Sandbox, family: str) -> None:
    assert faults(sandbox, getattr(hostile_images, family)()) == {}


def test_flipped_bytes_only_spoil_the_image(sandbox: Sandbox) -> None:
    times = int(os.environ.get("HIRESFIX_TEST_FLIPS", "25"))
    assert faults(sandbox, hostile_images.flipped(times)) == {}


def test_route_answers_202_or_400(start_api: Callable[..., Api]) -> None:
    free = {"clarity-upscale": pricing.flat(0)}
    api = start_api(rate_submissions=10_000, max_queued_jobs=10_000, prices=free)
    seen = {202: 0, 400: 0}
    for name, data in (*hostile_images.crafted(), *hostile_images.truncated(), *hostile_images.flipped(2)):
        uri = "data:image/png;base64," + base64.b64encode(data).decode()
        response = api.submit({"image": uri, "scale_factor": 1})
        assert response.status_code in seen, (name, response.text)
        seen[response.status_code] += 1
    assert min(seen.values()) > 20
    assert len(api.files) == seen[202]
