"""The samples on the pages: pictures of the repository, made larger by the engine with the settings that are shown.

`python -m benchmarks.samples` makes them again. The pictures are CC0; `origin` says where they come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hiresfix.models import catalog
from hiresfix.models.catalog import Model
from hiresfix.server.web.message_format import mark

BUDGIE = "https://github.com/BuddiesOfBudgie/budgie-backgrounds"
UBUNTU_MATE = "https://github.com/ubuntu-mate/ubuntu-mate-artwork"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """`title` and `alt` are messages; `params` are what a request would hold beside the picture."""

    name: str
    model: Model
    title: str
    alt: str
    params: Mapping[str, Any]
    author: str
    origin: str
    width: int = 240
    height: int = 180
    """Both in pixels, of the picture before."""

    @property
    def before(self) -> str:
        return f"img/samples/{self.name}-before.webp"

    @property
    def after(self) -> str:
        return f"img/samples/{self.name}-after.webp"

    @property
    def scale(self) -> int:
        return int(self.params["scale_factor"])


SAMPLES: tuple[Sample, ...] = (
    Sample(
        name="colosseum",
        model=catalog.CLARITY,
        title=mark("Architecture"),
        alt=mark("Arches of the Colosseum in warm evening light"),
        params={"scale_factor": 4, "creativity": 0.35, "resemblance": 0.6, "dynamic": 6, "seed": 7},
        author="Ubuntu Budgie",
        origin=BUDGIE,
    ),
    Sample(
        name="lake",
        model=catalog.CLARITY,
        title=mark("Landscape"),
        alt=mark("Snowy mountains above a still lake"),
        params={"scale_factor": 4, "creativity": 0.5, "resemblance": 0.6, "dynamic": 8, "seed": 7},
        author="Ubuntu Budgie",
        origin=BUDGIE,
    ),
    Sample(
        name="hippo",
        model=catalog.CLARITY,
        title=mark("Animals"),
        alt=mark("A hippopotamus asleep among water plants"),
        params={"scale_factor": 4, "creativity": 0.35, "resemblance": 0.6, "dynamic": 6, "seed": 7},
        author="Hu Chen",
        origin=UBUNTU_MATE,
    ),
    Sample(
        name="tea",
        model=catalog.CLARITY,
        title=mark("Texture"),
        alt=mark("Rows of tea bushes on a hillside"),
        params={"scale_factor": 4, "creativity": 0.7, "resemblance": 0.6, "dynamic": 6, "seed": 7},
        author="Ubuntu Budgie",
        origin=BUDGIE,
    ),
    Sample(
        name="waves",
        model=catalog.CLARITY,
        title=mark("Water"),
        alt=mark("Blue waves with white crests, seen from above"),
        params={"scale_factor": 4, "creativity": 0.35, "resemblance": 0.6, "dynamic": 6, "seed": 7},
        author="Ubuntu Budgie",
        origin=BUDGIE,
    ),
    Sample(
        name="facade",
        model=catalog.FAITHFUL,
        title=mark("Edges"),
        alt=mark("A facade of overlapping metal scales"),
        params={"scale_factor": 4, "content": "photo"},
        author="Ubuntu Budgie",
        origin=BUDGIE,
    ),
    Sample(
        name="lobster",
        model=catalog.FAITHFUL,
        title=mark("Photograph"),
        alt=mark("A bright blue lobster on dark ground"),
        params={"scale_factor": 4, "content": "photo"},
        author="David Clode",
        origin=UBUNTU_MATE,
    ),
    Sample(
        name="minotaur",
        model=catalog.FAITHFUL,
        title=mark("Illustration"),
        alt=mark("A drawn minotaur in armour"),
        params={"scale_factor": 4, "content": "anime"},
        author="Simon Butcher",
        origin=UBUNTU_MATE,
    ),
)


def of(model: Model) -> tuple[Sample, ...]:
    return tuple(sample for sample in SAMPLES if sample.model is model)
