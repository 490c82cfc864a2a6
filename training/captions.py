"""Write captions about measurable properties of an image: its quality, and how its colours were changed.

A caption describes the target, which may differ from the control image, so that the network learns to follow words:
bad words belong to targets that were degraded, colour words to targets whose colours were changed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from hiresfix.engine.diffusion import clip_tokenizer, prompts
from training import degradations

GOOD_WORDS = ("masterpiece", "best quality", "highres", "sharp", "highly detailed", "crisp", "sharp focus", "8k", "hdr")
BLUR_WORDS = ("blurry", "smooth", "soft", "out of focus", "low resolution")
NOISE_WORDS = ("noisy", "grainy", "noise")
JPEG_WORDS = ("jpeg artifacts", "compressed", "blocky")
BAD_WORDS = ("worst quality", "low quality", "normal quality", "bad", "ugly")
FILLER_WORDS = (
    "a photo of",
    "with",
    "in",
    "the",
    "nature",
    "portrait",
    "city",
    "animal",
    "food",
    "landscape",
    "person",
)

_BAD_SHARE, _COLOUR_SHARE, _EMPTY_SHARE, _FILLER_SHARE = 0.3, 0.3, 0.1, 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionedBatch:
    """Targets (n, 3, H, W) in 0..1, and the token ids of their captions, (n, 77)."""

    target: Tensor
    ids: Tensor


def word_ids() -> tuple[int, ...]:
    """Return the ids of all tokens in captions, sorted; the comma is one of them."""
    texts = [
        *GOOD_WORDS,
        *BLUR_WORDS,
        *NOISE_WORDS,
        *JPEG_WORDS,
        *BAD_WORDS,
        *FILLER_WORDS,
        *(word for word, _, _ in _COLOUR_CHANGES),
        ",",
    ]
    return tuple(sorted({number for text in texts for number in clip_tokenizer.token_ids(text)}))


@functools.lru_cache(maxsize=1 << 16)
def caption_ids(caption: str) -> tuple[int, ...]:
    """Return the first chunk's ids, as the engine encodes a prompt."""
    return prompts.split_chunks(caption)[0].ids


def add_captions(clean: Tensor, generator: Generator) -> CaptionedBatch:
    """Keep, degrade or recolour each image, and write a caption that describes the result; some stay empty."""
    targets, captions = [], []
    for index in range(len(clean)):
        image = clean[index : index + 1]
        target, words = _change_quality(image, generator)
        if _uniform(generator) < _COLOUR_SHARE:
            word, min_strength, change = _COLOUR_CHANGES[int(len(_COLOUR_CHANGES) * _uniform(generator))]
            target = change(target, min_strength + (1 - min_strength) * _uniform(generator)).clamp(0, 1)
            words = [*words, word]
        if _uniform(generator) < _FILLER_SHARE:
            words = [*words, *_pick_some(FILLER_WORDS, generator)]
        order = torch.randperm(len(words), generator=generator).tolist()
        captions.append("" if _uniform(generator) < _EMPTY_SHARE else ", ".join(words[index] for index in order))
        targets.append(target)
    return CaptionedBatch(
        target=torch.cat(targets), ids=torch.tensor([caption_ids(caption) for caption in captions]).to(clean.device)
    )


def _change_quality(image: Tensor, generator: Generator) -> tuple[Tensor, list[str]]:
    if _uniform(generator) >= _BAD_SHARE:
        return image, _pick_some(GOOD_WORDS, generator)
    strength = _uniform(generator)
    words: tuple[str, ...]
    match int(4 * _uniform(generator)):
        case 0:
            image, words = degradations.blur(image, 0.8 + 1.2 * strength), BLUR_WORDS
        case 1:
            image, words = degradations.rescale(image, 1.8 + 2 * strength, "bicubic"), BLUR_WORDS
        case 2:
            image, words = degradations.add_noise(image, 5 + 15 * strength, generator), NOISE_WORDS
        case _:
            image, words = degradations.jpeg(image, int(8 + 27 * strength)), JPEG_WORDS
    return image, [*_pick_some(words, generator), *_pick_some(BAD_WORDS, generator)]


def _saturate(x: Tensor, by: float) -> Tensor:
    grey = x.mean(1, keepdim=True)
    return grey + (x - grey) * by


def _warm(x: Tensor, by: float) -> Tensor:
    return x * x.new_tensor([1 + 0.25 * by, 1.0, 1 - 0.25 * by]).view(1, 3, 1, 1)


def _contrasted(x: Tensor, by: float) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return mean + (x - mean) * by


# Word, least strength, and the change for a strength up to 1.
_COLOUR_CHANGES: tuple[tuple[str, float, Callable[[Tensor, float], Tensor]], ...] = (
    ("warm colors", 0.4, _warm),
    ("cool colors", 0.4, lambda x, by: _warm(x, -by)),
    ("bright", 0.4, lambda x, by: x ** (1 - 0.4 * by)),
    ("dark", 0.4, lambda x, by: x ** (1 + 0.7 * by)),
    ("vivid colors", 0.4, lambda x, by: _saturate(x, 1 + 0.8 * by)),
    ("monochrome", 0.9, lambda x, by: _saturate(x, 1 - by)),
    ("high contrast", 0.4, lambda x, by: _contrasted(x, 1 + 0.5 * by)),
    ("low contrast", 0.4, lambda x, by: _contrasted(x, 1 - 0.5 * by)),
)


def _pick_some(of: tuple[str, ...], generator: Generator) -> list[str]:
    count = 1 + int(3 * _uniform(generator))
    return [of[index] for index in torch.randperm(len(of), generator=generator)[:count].tolist()]


def _uniform(generator: Generator) -> float:
    return float(torch.rand((), generator=generator))
