"""What the pages say of each model beyond the catalog's facts: why one would want it, and what people ask.

A model without an entry has a page all the same, with what the catalog says. Texts are messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hiresfix.models import catalog
from hiresfix.server.web.message_format import mark


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """`reasons`: title and text; `questions`: question and answer."""

    tagline: str
    reasons: tuple[tuple[str, str], ...]
    questions: tuple[tuple[str, str], ...]


ABOUT: Mapping[str, About] = {
    catalog.CLARITY.id: About(
        tagline=mark("Make pictures larger and give them the detail they lack. You decide how much may be invented."),
        reasons=(
            (
                mark("Detail where it belongs"),
                mark(
                    "Stone, foliage, hair and cloth gain texture. Skies, skin and walls stay calm, because nothing is"
                    " invented where the picture shows none."
                ),
            ),
            (
                mark("Three sliders, not thirty"),
                mark(
                    "`creativity` says how much may be invented, `resemblance` how closely it follows your picture,"
                    " `dynamic` how crisp it looks. The defaults suit most photographs."
                ),
            ),
            (
                mark("The same picture again"),
                mark(
                    "The same seed and settings on the same kind of machine give the same pixels. Every finished job"
                    " tells the seed it used."
                ),
            ),
            (
                mark("Colours stay as they were"),
                mark(
                    "Colour profile, transparency, 16-bit depth and orientation come through. Each result is compared"
                    " with your picture, and the figures are in the job."
                ),
            ),
        ),
        questions=(
            (
                mark("Will faces and lettering change?"),
                mark(
                    "At low creativity they hardly do. Raise `resemblance` and lower `creativity` for people and text,"
                    " or take `faithful-upscale`, which invents as little as it can."
                ),
            ),
            (
                mark("Does it follow my prompt?"),
                mark(
                    "Only where the operator has installed diffusion weights. The offline engine ignores prompts and"
                    " says so in the job's `metadata.warnings`."
                ),
            ),
        ),
    ),
    catalog.FAITHFUL.id: About(
        tagline=mark("Make pictures larger and sharper, and invent as little as possible."),
        reasons=(
            (
                mark("True to the source"),
                mark(
                    "The result, made small again, is pulled back to your picture until both agree, so that nothing"
                    " drifts away from it."
                ),
            ),
            (
                mark("Photographs and drawings"),
                mark(
                    "`content` chooses between a network for photographs and one for drawings, which keeps lines clean"
                    " and flat areas flat."
                ),
            ),
            (
                mark("Nothing to adjust"),
                mark("Choose the factor and go. It is the right choice for documents, products, faces and maps."),
            ),
            (
                mark("Colours stay as they were"),
                mark(
                    "Colour profile, transparency, 16-bit depth and orientation come through. Each result is compared"
                    " with your picture, and the figures are in the job."
                ),
            ),
        ),
        questions=(
            (
                mark("How does it differ from clarity-upscale?"),
                mark(
                    "It sharpens what is there. `clarity-upscale` also invents plausible detail where the picture has"
                    " texture, which looks richer and is less true."
                ),
            ),
            (
                mark("When should I choose anime as content?"),
                mark("For drawings, comics and flat graphics. Leave it at `photo` for everything a camera made."),
            ),
        ),
    ),
}
