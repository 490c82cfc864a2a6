"""Samples on the pages: images of the repository, upscaled by the engine with the parameters that are shown.

`python -m benchmarks.samples` makes them again. The images are CC0; `origin` says where they come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hiresfix.models import catalog
from hiresfix.models.catalog import CatalogModel
from hiresfix.server.web.message_format import mark

BUDGIE = "https://github.com/BuddiesOfBudgie/budgie-backgrounds"
UBUNTU_MATE = "https://github.com/ubuntu-mate/ubuntu-mate-artwork"


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleImage:
    """One sample; `title` and `alt` are messages, `params` are the parameters of a request besides the image."""

    name: str
    model: CatalogModel
    title: str
    alt: str
    params: Mapping[str, Any]
    author: str
    origin: str
    width: int = 240
    height: int = 180
    """Pixels of the image before upscaling."""

    @property
    def before(self) -> str:
        return f"img/samples/{self.name}-before.webp"

    @property
    def after(self) -> str:
        return f"img/samples/{self.name}-after.webp"

    @property
    def scale(self) -> int:
        return int(self.params["scale_factor"])


SAMPLES: tuple[SampleImage, ...] = (
    SampleImage(
        name="colosseum",
        model=catalog.CLARITY,
        title=mark("Architecture"),
        alt=mark("Arches of the Colosseum in warm evening light"),
        params={"scale_factor": 4, "creativity": 0.35, "resemblance": 0.6, "dynamic": 6, "seed": 7},
        author="Ubuntu Budgie",
        origin=BUDGIE,
    ),
    SampleImage(
        name="lake",
        model=catalog.CLARITY,
        title=mark("Landscape"),
        alt=mark("Snowy mountains above a still lake"),
        params={"scale_factor": 4, "creativity": 0.5, "resemblance": 0.6, "dynamic": 8, "seed": 7},
        author="Ubuntu Budgie",
        origin=BUDGIE,
    ),
    SampleImage(
        name="hippo",
        model=catalog.CLARITY,
        title=mark("Animals"),
        alt=mark("A hippopotamus asleep among water plants"),
        params={"scale_factor": 4, "creativity": 0.35, "resemblance": 0.6, "dynamic": 6, "seed": 7},
        author="Hu Chen",
        origin=UBUNTU_MATE,
    ),
    SampleImage(
        name="tea",
        model=catalog.CLARITY,
        title=mark("Texture"),
        alt=mark("Rows of tea bushes on a hillside"),
        params={"scale_factor": 4, "creativity": 0.7, "resemblance": 0.6, "dynamic": 6, "seed": 7},
        author="Ubuntu Budgie",
        origin=BUDGIE,
    ),
    SampleImage(
        name="waves",
        model=catalog.CLARITY,
        title=mark("Water"),
        alt=mark("Blue waves with white crests, seen from above"),
        params={"scale_factor": 4, "creativity": 0.35, "resemblance": 0.6, "dynamic": 6, "seed": 7},
        author="Ubuntu Budgie",
        origin=BUDGIE,
    ),
    SampleImage(
        name="facade",
        model=catalog.FAITHFUL,
        title=mark("Edges"),
        alt=mark("A facade of overlapping metal scales"),
        params={"scale_factor": 4, "content": "photo"},
        author="Ubuntu Budgie",
        origin=BUDGIE,
    ),
    SampleImage(
        name="lobster",
        model=catalog.FAITHFUL,
        title=mark("Photo"),
        alt=mark("A bright blue lobster on a dark background"),
        params={"scale_factor": 4, "content": "photo"},
        author="David Clode",
        origin=UBUNTU_MATE,
    ),
    SampleImage(
        name="minotaur",
        model=catalog.FAITHFUL,
        title=mark("Illustration"),
        alt=mark("A drawing of a minotaur in armour"),
        params={"scale_factor": 4, "content": "anime"},
        author="Simon Butcher",
        origin=UBUNTU_MATE,
    ),
)


def samples_of(model: CatalogModel) -> tuple[SampleImage, ...]:
    return tuple(sample for sample in SAMPLES if sample.model is model)
