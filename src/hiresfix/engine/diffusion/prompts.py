"""Encode prompts: emphasis, chunks of 75 tokens, textual inversion, and `<lora:...>` tags.

Guarantees:

- Every string is encoded, or rejected with a `PromptError` that says what to do. A bracket without a partner or a
  meaning is text.
- Without emphasis and embeddings, the result is exactly what the text encoder computes.
- The text encoder is never modified, so several threads may share it.

Follows algorithm.md 7. Scheduled and alternating words (`[a:b:0.5]`, `[a|b]`) and `AND` have no special meaning; they
are words. Independent of files and devices. LoRAs are not merged here, only named.
"""

from __future__ import annotations

import math
import re
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hiresfix import messages
from hiresfix.engine.diffusion import clip_tokenizer
from hiresfix.engine.diffusion.textual_inversion import MAX_VECTORS, Embedding
from hiresfix.errors import PromptError

if TYPE_CHECKING:
    from transformers import CLIPTextModel

CHUNK_TOKENS = MAX_VECTORS
"""Tokens of a chunk between its two special tokens."""
CHUNK_LENGTH = CHUNK_TOKENS + 2
MAX_CHUNKS = 128
"""Enough for 10,000 English letters, or 2000 characters of any script. Even then a tile of 112 x 144 latent pixels
attends to fewer prompt tokens (9,856) than to its own pixels (16,128)."""

_BACKTRACK = 20
_EMPHASIS = 1.1
# Larger weights give only noise, and a thousand brackets would overflow. Products are clamped at each bracket.
_MAX_WEIGHT = 10.0
# Limit for the ratio of two means; negative weights can bring one of them to zero. Together with the limit above it
# keeps float16 finite: CLIP's largest values are near 33.
_MAX_RESTORATION = 100.0
_MAX_STRENGTH = 10.0


# --- Tags


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraTag:
    """A LoRA that a prompt names, with its multipliers for text encoder and UNet, -10..10."""

    name: str
    text_encoder: float
    unet: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractedTags:
    """A prompt without its tags, the LoRAs they name, and one sentence for each ignored tag."""

    prompt: str
    loras: tuple[LoraTag, ...]
    warnings: tuple[str, ...]


_TAG = re.compile(r"<(\w+):([^<>]+)>")


def extract_tags(prompt: str, allowed: Collection[str]) -> ExtractedTags:
    """Remove `<lora:NAME:te[:unet]>` tags (also `te=`, `unet=`) from a positive prompt and parse them.

    In a negative prompt tags are words. `te` is 1 by default, `unet` equals `te` by default. A name that is not in
    `allowed`, the LoRAs that the operator offers, becomes a warning; so do other kinds of tags and multipliers that are
    not numbers. `lyco` means the same as `lora`.
    """
    loras: list[LoraTag] = []
    warnings: list[str] = []
    for match in _TAG.finditer(prompt):
        try:
            tag = _parse_lora(match[1], match[2])
        except ValueError as error:
            warnings.append(f"The tag {match[0]} was ignored: {error}.")
            continue
        if tag.name in allowed:
            loras.append(tag)
        else:
            warnings.append(f"The LoRA {tag.name} was ignored: it is not offered here.")
    return ExtractedTags(prompt=_TAG.sub("", prompt), loras=tuple(loras), warnings=tuple(warnings))


def _parse_lora(kind: str, arguments: str) -> LoraTag:
    if kind not in ("lora", "lyco"):
        raise ValueError("only lora tags are known")
    parts = [part.strip() for part in arguments.split(":")]
    named = dict(part.split("=", 1) for part in parts if "=" in part)
    name, *numbers = [part for part in parts if "=" not in part] or [""]
    if not name:
        raise ValueError("it does not name a LoRA")
    text_encoder = named.get("te", numbers[0] if numbers else "1")
    unet = named.get("unet", numbers[1] if len(numbers) > 1 else text_encoder)
    return LoraTag(name=name, text_encoder=_parse_strength(text_encoder), unet=_parse_strength(unet))


def _parse_strength(number: str) -> float:
    try:
        strength = float(number)
    except ValueError:
        strength = math.nan
    if not abs(strength) <= _MAX_STRENGTH:
        raise ValueError(f"{number!r} is not a number between -{_MAX_STRENGTH:g} and {_MAX_STRENGTH:g}")
    return strength


# --- Emphasis


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedText:
    """Text with one weight, -10..10; 1 is neutral."""

    text: str
    weight: float


_MARK = re.compile(r"\\[()\[\]\\]|\\|:\s*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))\s*\)|[()\[\]:]|[^\\()\[\]:]+")
_BREAK = re.compile(r"\bBREAK\b")
_OPENING = {")": "(", "]": "["}


def parse_emphasis(prompt: str) -> tuple[tuple[WeightedText, ...], ...]:
    """Split a prompt into sections of weighted texts; `BREAK` ends a section, also between brackets.

    `(x)` has weight 1.1, `[x]` 1/1.1 and `(x:1.3)` 1.3; nested weights multiply. A bracket that is never closed
    extends to the end; one that was never opened is text, and so is one after a backslash. Neighbours of equal weight
    are joined.
    """
    marks = list(_MARK.finditer(prompt))
    factors = _factors(marks)
    weights = {"(": [1.0], "[": [1.0]}
    sections: list[list[WeightedText]] = [[]]
    for index, mark in enumerate(marks):
        if index not in factors:
            weight = _clamp_weight(weights["("][-1] * weights["["][-1])
            for number, text in enumerate(_BREAK.split(mark[0].removeprefix("\\"))):
                if number:
                    sections.append([])
                _append(sections[-1], text, weight)
        elif (factor := factors[index]) is not None:
            weights[mark[0]].append(_clamp_weight(weights[mark[0]][-1] * factor))
        else:
            weights[_OPENING[mark[0][-1]]].pop()
    return tuple(map(tuple, sections))


def _factors(marks: Sequence[re.Match[str]]) -> dict[int, float | None]:
    """Map the index of each meaningful bracket to its factor, or to None for a closing bracket."""
    factors: dict[int, float | None] = {}
    opened: dict[str, list[int]] = {"(": [], "[": []}
    for index, mark in enumerate(marks):
        match mark[0]:
            case "(" | "[" as bracket:
                opened[bracket].append(index)
                factors[index] = _EMPHASIS if bracket == "(" else 1 / _EMPHASIS
            case "]" if opened["["]:
                opened["["].pop()
                factors[index] = None
            case ")" if opened["("]:
                opened["("].pop()
                factors[index] = None
            case _ if mark[1] is not None and opened["("]:
                factors[opened["("].pop()] = _clamp_weight(float(mark[1]))
                factors[index] = None
    return factors


def _append(section: list[WeightedText], text: str, weight: float) -> None:
    if section and section[-1].weight == weight:
        section[-1] = WeightedText(text=section[-1].text + text, weight=weight)
    elif text:
        section.append(WeightedText(text=text, weight=weight))


def _clamp_weight(weight: float) -> float:
    return max(-_MAX_WEIGHT, min(_MAX_WEIGHT, weight))


# --- Chunks


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """One input of the text encoder: START, 75 tokens padded with END, END.

    Args:
        ids: 77 token ids; those under an embedding are placeholders.
        weights: 77 weights.
        placed_embeddings: Embeddings with the position of their first vector.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    placed_embeddings: tuple[tuple[int, Embedding], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unit:
    """A unit that is never split: a token, or all vectors of an embedding."""

    token: int
    weight: float
    embedding: Embedding | None = None

    @property
    def length(self) -> int:
        return len(self.embedding.vectors) if self.embedding else 1


def split_chunks(prompt: str, embeddings: Sequence[Embedding] = ()) -> tuple[Chunk, ...]:
    """Split a prompt into chunks, at least one.

    If a chunk is full and one of its last 20 tokens is a comma, the tokens after the comma move to the next chunk. An
    embedding replaces the tokens of its name; longer names come first, and the first of equal names wins. A `BREAK`
    with nothing before it makes an empty chunk.

    Raises:
        PromptError: There are more than MAX_CHUNKS chunks.
    """
    names = sorted(
        ((tuple(clip_tokenizer.token_ids(embedding.name)), embedding) for embedding in embeddings),
        key=lambda named: -len(named[0]),
    )
    filled: list[list[_Unit]] = []
    for section in parse_emphasis(prompt):
        filled += _fill(unit for piece in section for unit in _units(piece, names))
    if len(filled) > 1 and not filled[-1]:
        filled.pop()
    if len(filled) > MAX_CHUNKS:
        raise PromptError(messages.PROMPT_TOO_LONG(chunks=len(filled), tokens=CHUNK_TOKENS, limit=MAX_CHUNKS))
    return tuple(map(_to_chunk, filled))


def _units(piece: WeightedText, names: Sequence[tuple[tuple[int, ...], Embedding]]) -> Iterator[_Unit]:
    ids = tuple(clip_tokenizer.token_ids(piece.text))
    position = 0
    while position < len(ids):
        for name, embedding in names:
            if name and ids[position : position + len(name)] == name:
                yield _Unit(token=0, weight=piece.weight, embedding=embedding)
                position += len(name)
                break
        else:
            yield _Unit(token=ids[position], weight=piece.weight)
            position += 1


def _fill(units: Iterator[_Unit]) -> list[list[_Unit]]:
    filled: list[list[_Unit]] = [[]]
    used = 0
    for unit in units:
        while used + unit.length > CHUNK_TOKENS:
            moved = _after_comma(filled[-1]) if used == CHUNK_TOKENS and unit.token != clip_tokenizer.COMMA else []
            if moved:
                del filled[-1][-len(moved) :]
            filled.append(moved)
            used = sum(unit.length for unit in moved)
        filled[-1].append(unit)
        used += unit.length
    return filled


def _after_comma(units: Sequence[_Unit]) -> list[_Unit]:
    """Return the units after the last comma, if it is one of the last 20 tokens."""
    after = 0
    for index in range(len(units) - 1, -1, -1):
        if units[index].token == clip_tokenizer.COMMA:
            return list(units[index + 1 :])
        after += units[index].length
        if after >= _BACKTRACK:
            break
    return []


def _to_chunk(units: Sequence[_Unit]) -> Chunk:
    ids, weights = [clip_tokenizer.START], [1.0]
    placed_embeddings = []
    for unit in units:
        if unit.embedding is not None:
            placed_embeddings.append((len(ids), unit.embedding))
        ids += [unit.token] * unit.length
        weights += [unit.weight] * unit.length
    missing = CHUNK_LENGTH - len(ids)
    return Chunk(
        ids=(*ids, *[clip_tokenizer.END] * missing),
        weights=(*weights, *[1.0] * missing),
        placed_embeddings=tuple(placed_embeddings),
    )


# --- Conditioning


@torch.no_grad()
def encode(prompt: str, text_encoder: CLIPTextModel, embeddings: Sequence[Embedding] = ()) -> Tensor:
    """Encode a prompt to (1, 77 * chunks, width), in the text encoder's dtype and on its device.

    Each chunk is encoded separately: the last hidden state after the final LayerNorm (CLIP skip 1), times the weights
    of its tokens, scaled so that the mean over the chunk stays the same. Embeddings must have the encoder's width
    (`textual_inversion.load` checks it).

    Raises:
        PromptError: The prompt is too long.
    """
    chunks = split_chunks(prompt, embeddings)
    table = text_encoder.embeddings.token_embedding
    inputs = table(torch.tensor([chunk.ids for chunk in chunks], device=table.weight.device))
    for row, chunk in zip(inputs, chunks, strict=True):
        for position, embedding in chunk.placed_embeddings:
            row[position : position + len(embedding.vectors)] = embedding.vectors.to(inputs)
    hidden = _attend(text_encoder, inputs)
    weights = torch.tensor([chunk.weights for chunk in chunks], device=hidden.device)
    return _apply_weights(hidden, weights).flatten(0, 1).unsqueeze(0)


def _attend(text_encoder: CLIPTextModel, inputs: Tensor) -> Tensor:
    """Run the encoder's forward pass from token embeddings on.

    Its own method takes only ids, and replacing its table temporarily would affect other threads.
    """
    from transformers.masking_utils import create_causal_mask

    hidden = text_encoder.embeddings(inputs_embeds=inputs)
    mask = create_causal_mask(text_encoder.config, hidden, attention_mask=None, past_key_values=None)
    hidden = text_encoder.encoder(inputs_embeds=hidden, attention_mask=mask, is_causal=True).last_hidden_state
    attended: Tensor = text_encoder.final_layer_norm(hidden)
    return attended


def _apply_weights(hidden: Tensor, weights: Tensor) -> Tensor:
    """Multiply (chunks, 77, width) by (chunks, 77) and restore the mean of each chunk; weights of 1 change nothing."""
    before = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    after = before * weights.unsqueeze(-1)
    ratio = before.mean((1, 2), keepdim=True) / after.mean((1, 2), keepdim=True)
    return (after * ratio.nan_to_num(nan=1.0).clamp(-_MAX_RESTORATION, _MAX_RESTORATION)).to(hidden.dtype)


_Key = tuple[str, tuple[LoraTag, ...], torch.device, torch.dtype]


class PromptEncoder:
    """Encode prompts with one text encoder and cache the last few, so that default prompts are encoded once.

    Thread-safe as long as nobody changes the encoder's weights meanwhile. The returned tensors are shared: do not
    write to them.
    """

    _CACHE_SIZE = 16
    _MAX_CACHED_CHUNKS = 8  # long prompts are rare, hardly ever repeated, and some MB each

    def __init__(self, text_encoder: CLIPTextModel, embeddings: Sequence[Embedding] = ()) -> None:
        self._text_encoder = text_encoder
        self._embeddings = tuple(embeddings)
        self._encoded: OrderedDict[_Key, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, prompt: str, loras: tuple[LoraTag, ...] = ()) -> Tensor:
        """Encode a prompt as `encode` does; `loras` are those merged into the encoder now, because they change it."""
        table = self._text_encoder.embeddings.token_embedding.weight
        key = (prompt, loras, table.device, table.dtype)
        with self._lock:
            if key in self._encoded:
                self._encoded.move_to_end(key)
                return self._encoded[key]
        encoded = encode(prompt, self._text_encoder, self._embeddings)
        if encoded.shape[1] <= self._MAX_CACHED_CHUNKS * CHUNK_LENGTH:
            with self._lock:
                self._encoded[key] = encoded
                if len(self._encoded) > self._CACHE_SIZE:
                    self._encoded.popitem(last=False)
        return encoded
