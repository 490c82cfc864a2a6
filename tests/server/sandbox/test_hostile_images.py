"""Files made to do harm: each is a picture of the size its header says, or refused in words; nothing else happens."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterable, Iterator

import pytest

from hiresfix.errors import PictureError
from hiresfix.images import Limits
from hiresfix.models import pricing
from hiresfix.server.sandbox.client import DecoderStopped, Sandbox
from tests import hostile_images
from tests.server.conftest import Api

MEMORY = 400 * 1024 * 1024
"""Far less than the bytes that the bombs claim; the largest of the files is 16 MB."""
SECONDS = 10


@pytest.fixture(scope="module")
def quarantine() -> Iterator[Sandbox]:
    limits = Limits(max_input_megapixels=4)
    with Sandbox(limits, memory=MEMORY, processor_seconds=SECONDS, wall_seconds=60) as opened:
        yield opened


def outcome(quarantine: Sandbox, data: bytes) -> str | None:
    """What is wrong with how a file was treated."""
    try:
        header = quarantine.probe(data)
        size = quarantine.decode(data).size
    except DecoderStopped as error:
        return f"stopped the decoder: {error.message}"
    except PictureError as error:
        return None if error.message.endswith(".") else f"refused without advice: {error.message}"
    return None if size == header.size else f"is {size}, the header says {header.size}"


def faults(quarantine: Sandbox, files: Iterable[tuple[str, bytes]]) -> dict[str, str]:
    found = ((name, outcome(quarantine, data)) for name, data in files)
    return {name: fault for name, fault in found if fault}


@pytest.mark.parametrize("family", ["truncated", "crafted"])
def test_hostile_files_decode_to_their_size_or_are_refused_in_words(quarantine: Sandbox, family: str) -> None:
    assert faults(quarantine, getattr(hostile_images, family)()) == {}


def test_flipped_bytes_never_do_more_than_spoil_a_picture(quarantine: Sandbox) -> None:
    times = int(os.environ.get("HIRESFIX_TEST_FLIPS", "25"))
    assert faults(quarantine, hostile_images.flipped(times)) == {}


def test_the_route_answers_202_or_400_to_every_one_of_them(start_api: Callable[..., Api]) -> None:
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
