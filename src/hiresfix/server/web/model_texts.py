"""Texts about each model beyond the catalog: tagline, highlights, questions and answers.

A model without an entry still has a page, with the texts of the catalog. All texts are messages to translate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hiresfix.models import catalog
from hiresfix.server.web.message_format import mark


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelText:
    """Texts of one model; `reasons` are titles and texts, `questions` are questions and answers."""

    tagline: str
    reasons: tuple[tuple[str, str], ...]
    questions: tuple[tuple[str, str], ...]


MODEL_TEXTS: Mapping[str, ModelText] = {
    catalog.CLARITY.id: ModelText(
        tagline=mark("Upscale images and fill in the detail they lack. You decide how much is invented."),
        reasons=(
            (
                mark("Detail where it belongs"),
                mark(
                    "Stone, foliage, hair and fabric gain texture. Skies, skin and walls stay smooth: where the image"
                    " has no texture, none is invented."
                ),
            ),
            (
                mark("Three simple sliders"),
                mark(
                    "`creativity` sets how much detail is invented, `resemblance` how closely the result follows your"
                    " image, and `dynamic` how crisp it looks. The defaults suit most photos."
                ),
            ),
            (
                mark("Reproducible results"),
                mark(
                    "The same seed and settings on the same kind of hardware give the same pixels. Every finished job"
                    " reports the seed it used."
                ),
            ),
            (
                mark("Colours are preserved"),
                mark(
                    "Colour profile, transparency, 16-bit depth and orientation are kept. Every result is compared with"
                    " your image, and the job reports the metrics."
                ),
            ),
        ),
        questions=(
            (
                mark("Will faces and text change?"),
                mark(
                    "Hardly, at low creativity. For people and text, raise `resemblance` and lower `creativity`, or use"
                    " `faithful-upscale`, which invents as little as possible."
                ),
            ),
            (
                mark("Does it follow my prompt?"),
                mark(
                    "Only if the operator has installed diffusion weights. The offline engine ignores prompts and says"
                    " so in the job's `metadata.warnings`."
                ),
            ),
        ),
    ),
    catalog.FAITHFUL.id: ModelText(
        tagline=mark("Upscale and sharpen images while inventing as little as possible."),
        reasons=(
            (
                mark("True to the original"),
                mark(
                    "The result is adjusted until it matches your image when scaled back down, so that it does not"
                    " drift."
                ),
            ),
            (
                mark("Photos and drawings"),
                mark(
                    "`content` selects a network for photos or one for drawings, which keeps lines clean and flat areas"
                    " flat."
                ),
            ),
            (
                mark("Nothing to adjust"),
                mark("Choose a scale factor and go. A good choice for documents, products, faces and maps."),
            ),
            (
                mark("Colours are preserved"),
                mark(
                    "Colour profile, transparency, 16-bit depth and orientation are kept. Every result is compared with"
                    " your image, and the job reports the metrics."
                ),
            ),
        ),
        questions=(
            (
                mark("How is it different from clarity-upscale?"),
                mark(
                    "It sharpens what is there. `clarity-upscale` also invents plausible detail in textured areas,"
                    " which looks richer but is less faithful."
                ),
            ),
            (
                mark("When should I set content to anime?"),
                mark("For drawings, comics and flat graphics. Use `photo` for anything taken with a camera."),
            ),
        ),
    ),
}
