"""Words for what can be measured on a picture: how good it is, and how its colours were changed.

What a caption says is true of the target and not always of what the network is shown, so that words count for
something: bad words go with targets that were made worse, colour words with targets whose colours were changed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from hiresfix.engine.diffusion import clip_tokenizer, prompts
from training import degradations

GOOD = ("masterpiece", "best quality", "highres", "sharp", "highly detailed", "crisp", "sharp focus", "8k", "hdr")
BLURRED = ("blurry", "smooth", "soft", "out of focus", "low resolution")
NOISY = ("noisy", "grainy", "noise")
BLOCKY = ("jpeg artifacts", "compressed", "blocky")
BAD = ("worst quality", "low quality", "normal quality", "bad", "ugly")
FILLING = ("a photo of", "with", "in", "the", "nature", "portrait", "city", "animal", "food", "landscape", "person")

_BAD_SHARE, _COLOUR_SHARE, _EMPTY_SHARE, _FILLING_SHARE = 0.3, 0.3, 0.1, 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Captioned:
    """Targets (n, 3, H, W) in 0..1, and the token ids of what is said of each, (n, 77)."""

    target: Tensor
    ids: Tensor


def words() -> tuple[int, ...]:
    """The ids of all tokens that captions are made of, in order; a prompt's comma too."""
    said = [*GOOD, *BLURRED, *NOISY, *BLOCKY, *BAD, *FILLING, *(word for word, _, _ in _COLOURS), ","]
    return tuple(sorted({number for text in said for number in clip_tokenizer.token_ids(text)}))


@functools.lru_cache(maxsize=1 << 16)
def ids(caption: str) -> tuple[int, ...]:
    """As the engine reads a prompt: its first chunk."""
    return prompts.chunks(caption)[0].ids


def captioned(clean: Tensor, generator: Generator) -> Captioned:
    """Each picture as it is, worse, or in other colours; with words that say so, most of the time."""
    targets, said = [], []
    for index in range(len(clean)):
        picture = clean[index : index + 1]
        target, true = _quality(picture, generator)
        if _chance(generator) < _COLOUR_SHARE:
            word, least, change = _COLOURS[int(len(_COLOURS) * _chance(generator))]
            target = change(target, least + (1 - least) * _chance(generator)).clamp(0, 1)
            true = [*true, word]
        if _chance(generator) < _FILLING_SHARE:
            true = [*true, *_some(FILLING, generator)]
        order = torch.randperm(len(true), generator=generator).tolist()
        said.append("" if _chance(generator) < _EMPTY_SHARE else ", ".join(true[place] for place in order))
        targets.append(target)
    return Captioned(target=torch.cat(targets), ids=torch.tensor([ids(caption) for caption in said]).to(clean.device))


def _quality(picture: Tensor, generator: Generator) -> tuple[Tensor, list[str]]:
    if _chance(generator) >= _BAD_SHARE:
        return picture, _some(GOOD, generator)
    strength = _chance(generator)
    said: tuple[str, ...]
    match int(4 * _chance(generator)):
        case 0:
            picture, said = degradations.blur(picture, 0.8 + 1.2 * strength), BLURRED
        case 1:
            picture, said = degradations.rescaled(picture, 1.8 + 2 * strength, "bicubic"), BLURRED
        case 2:
            picture, said = degradations.noisy(picture, 5 + 15 * strength, generator), NOISY
        case _:
            picture, said = degradations.jpeg(picture, int(8 + 27 * strength)), BLOCKY
    return picture, [*_some(said, generator), *_some(BAD, generator)]


def _saturated(x: Tensor, by: float) -> Tensor:
    grey = x.mean(1, keepdim=True)
    return grey + (x - grey) * by


def _warmer(x: Tensor, by: float) -> Tensor:
    return x * x.new_tensor([1 + 0.25 * by, 1.0, 1 - 0.25 * by]).view(1, 3, 1, 1)


def _contrasted(x: Tensor, by: float) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return mean + (x - mean) * by


# Word, least strength, and the change at a strength up to 1.
_COLOURS: tuple[tuple[str, float, Callable[[Tensor, float], Tensor]], ...] = (
    ("warm colors", 0.4, _warmer),
    ("cool colors", 0.4, lambda x, by: _warmer(x, -by)),
    ("bright", 0.4, lambda x, by: x ** (1 - 0.4 * by)),
    ("dark", 0.4, lambda x, by: x ** (1 + 0.7 * by)),
    ("vivid colors", 0.4, lambda x, by: _saturated(x, 1 + 0.8 * by)),
    ("monochrome", 0.9, lambda x, by: _saturated(x, 1 - by)),
    ("high contrast", 0.4, lambda x, by: _contrasted(x, 1 + 0.5 * by)),
    ("low contrast", 0.4, lambda x, by: _contrasted(x, 1 - 0.5 * by)),
)


def _some(of: tuple[str, ...], generator: Generator) -> list[str]:
    count = 1 + int(3 * _chance(generator))
    return [of[index] for index in torch.randperm(len(of), generator=generator)[:count].tolist()]


def _chance(generator: Generator) -> float:
    return float(torch.rand((), generator=generator))
