"""Prompts: emphasis, chunks of 75 tokens, textual inversion and `<lora:...>` tags -> what the networks attend to.

Guarantees: every string is read, or refused with a `PromptError` that says what to do; a bracket that makes no sense
is a character. With no emphasis and no embedding the result is what the text encoder itself computes. The encoder is
only read, so that several threads may share one. What is computed follows algorithm.md 7. Scheduled and
alternating words (`[a:b:0.5]`, `[a|b]`) and `AND` are not read, they are words. Knows no files and no devices, and
merges no LoRA: it says which ones a prompt asks for.
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

from hiresfix.engine.diffusion import clip_tokenizer
from hiresfix.engine.diffusion.textual_inversion import MAX_VECTORS, Embedding
from hiresfix.errors import PromptError

if TYPE_CHECKING:
    from transformers import CLIPTextModel

ROOM = MAX_VECTORS
"""Tokens of a chunk between its two special ones."""
LENGTH = ROOM + 2
MAX_CHUNKS = 128
"""Room for 10,000 letters of English, or 2000 characters of any script. Even then a tile of 112 x 144 latent pixels
attends to fewer tokens of the prompt (9,856) than to pixels of itself (16,128)."""

_BACKTRACK = 20
_EMPHASIS = 1.1
# Beyond it lies only noise, and a thousand brackets would overflow. Products are held within it at each bracket.
_MAX_WEIGHT = 10.0
# Of two means, one of which negative weights can bring to zero. With the above this keeps float16 finite: CLIP's
# largest values lie near 33.
_MAX_RESTORATION = 100.0
_MAX_STRENGTH = 10.0


# --- Tags


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraTag:
    """A LoRA that a prompt asks for, with its multipliers for text encoder and UNet, -10..10."""

    name: str
    text_encoder: float
    unet: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tagged:
    """A prompt without its tags, what they ask for, and one sentence for each tag that is not followed."""

    prompt: str
    loras: tuple[LoraTag, ...]
    warnings: tuple[str, ...]


_TAG = re.compile(r"<(\w+):([^<>]+)>")


def take_tags(prompt: str, allowed: Collection[str]) -> Tagged:
    """Take `<lora:NAME:te[:unet]>` (also `te=`, `unet=`) out of a positive prompt; in a negative one tags are words.

    `te` is 1 where it is missing, `unet` as `te`. A name outside `allowed`, the LoRAs that the operator offers, is a
    warning; so are other kinds of tags and multipliers that are no numbers. `lyco` is another word for `lora`.
    """
    loras: list[LoraTag] = []
    warnings: list[str] = []
    for match in _TAG.finditer(prompt):
        try:
            tag = _lora(match[1], match[2])
        except ValueError as error:
            warnings.append(f"The tag {match[0]} was ignored: {error}.")
            continue
        if tag.name in allowed:
            loras.append(tag)
        else:
            warnings.append(f"The LoRA {tag.name} was ignored: it is not offered here.")
    return Tagged(prompt=_TAG.sub("", prompt), loras=tuple(loras), warnings=tuple(warnings))


def _lora(kind: str, arguments: str) -> LoraTag:
    if kind not in ("lora", "lyco"):
        raise ValueError("only lora tags are known")
    parts = [part.strip() for part in arguments.split(":")]
    named = dict(part.split("=", 1) for part in parts if "=" in part)
    name, *numbers = [part for part in parts if "=" not in part] or [""]
    if not name:
        raise ValueError("it names no LoRA")
    text_encoder = named.get("te", numbers[0] if numbers else "1")
    unet = named.get("unet", numbers[1] if len(numbers) > 1 else text_encoder)
    return LoraTag(name=name, text_encoder=_strength(text_encoder), unet=_strength(unet))


def _strength(number: str) -> float:
    try:
        strength = float(number)
    except ValueError:
        strength = math.nan
    if not abs(strength) <= _MAX_STRENGTH:
        raise ValueError(f"{number!r} is no number between -{_MAX_STRENGTH:g} and {_MAX_STRENGTH:g}")
    return strength


# --- Emphasis


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Text of one weight, -10..10; 1 is neutral."""

    text: str
    weight: float


_MARK = re.compile(r"\\[()\[\]\\]|\\|:\s*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))\s*\)|[()\[\]:]|[^\\()\[\]:]+")
_BREAK = re.compile(r"\bBREAK\b")
_OPENING = {")": "(", "]": "["}


def parse(prompt: str) -> tuple[tuple[Piece, ...], ...]:
    """The weighted pieces of each section; `BREAK` ends a section, also between brackets.

    `(x)` weighs 1.1, `[x]` 1/1.1, `(x:1.3)` 1.3; nesting multiplies; a bracket that is never closed counts to the
    end, one that was never opened is text, and so is one after a backslash. Neighbours of equal weight are one piece.
    """
    marks = list(_MARK.finditer(prompt))
    factors = _factors(marks)
    weights = {"(": [1.0], "[": [1.0]}
    sections: list[list[Piece]] = [[]]
    for index, mark in enumerate(marks):
        if index not in factors:
            weight = _bounded(weights["("][-1] * weights["["][-1])
            for number, text in enumerate(_BREAK.split(mark[0].removeprefix("\\"))):
                if number:
                    sections.append([])
                _append(sections[-1], text, weight)
        elif (factor := factors[index]) is not None:
            weights[mark[0]].append(_bounded(weights[mark[0]][-1] * factor))
        else:
            weights[_OPENING[mark[0][-1]]].pop()
    return tuple(map(tuple, sections))


def _factors(marks: Sequence[re.Match[str]]) -> dict[int, float | None]:
    """For the marks that are brackets with a meaning: an opening one's factor, None for the one that closes it."""
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
                factors[opened["("].pop()] = _bounded(float(mark[1]))
                factors[index] = None
    return factors


def _append(section: list[Piece], text: str, weight: float) -> None:
    if section and section[-1].weight == weight:
        section[-1] = Piece(text=section[-1].text + text, weight=weight)
    elif text:
        section.append(Piece(text=text, weight=weight))


def _bounded(weight: float) -> float:
    return max(-_MAX_WEIGHT, min(_MAX_WEIGHT, weight))


# --- Chunks


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """What the text encoder sees at once: 77 ids and weights, START, 75 tokens filled up with END, END.

    `placed` are the embeddings and where their first vector goes; the ids there mean nothing.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    placed: tuple[tuple[int, Embedding], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unit:
    """What is never cut: a token, or all vectors of an embedding."""

    token: int
    weight: float
    embedding: Embedding | None = None

    @property
    def length(self) -> int:
        return len(self.embedding.vectors) if self.embedding else 1


def chunks(prompt: str, embeddings: Sequence[Embedding] = ()) -> tuple[Chunk, ...]:
    """The chunks of a prompt, at least one.

    Where a chunk is full and a comma is among its last 20 tokens, what follows the comma moves to the next one. An
    embedding stands wherever the tokens of its name do, the longest name first; of equal names the first is taken.
    A `BREAK` with nothing before it makes an empty chunk. Raises PromptError for more than MAX_CHUNKS.
    """
    names = sorted(
        ((tuple(clip_tokenizer.token_ids(embedding.name)), embedding) for embedding in embeddings),
        key=lambda named: -len(named[0]),
    )
    filled: list[list[_Unit]] = []
    for section in parse(prompt):
        filled += _fill(unit for piece in section for unit in _units(piece, names))
    if len(filled) > 1 and not filled[-1]:
        filled.pop()
    if len(filled) > MAX_CHUNKS:
        raise PromptError(
            f"The prompt makes {len(filled)} chunks of {ROOM} tokens, of which at most {MAX_CHUNKS} are read. "
            "Shorten it, or use BREAK less often."
        )
    return tuple(map(_framed, filled))


def _units(piece: Piece, names: Sequence[tuple[tuple[int, ...], Embedding]]) -> Iterator[_Unit]:
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
        while used + unit.length > ROOM:
            moved = _after_comma(filled[-1]) if used == ROOM and unit.token != clip_tokenizer.COMMA else []
            if moved:
                del filled[-1][-len(moved) :]
            filled.append(moved)
            used = sum(unit.length for unit in moved)
        filled[-1].append(unit)
        used += unit.length
    return filled


def _after_comma(units: Sequence[_Unit]) -> list[_Unit]:
    """What follows the last comma, if that is among the last 20 tokens."""
    after = 0
    for index in range(len(units) - 1, -1, -1):
        if units[index].token == clip_tokenizer.COMMA:
            return list(units[index + 1 :])
        after += units[index].length
        if after >= _BACKTRACK:
            break
    return []


def _framed(units: Sequence[_Unit]) -> Chunk:
    ids, weights = [clip_tokenizer.START], [1.0]
    placed = []
    for unit in units:
        if unit.embedding is not None:
            placed.append((len(ids), unit.embedding))
        ids += [unit.token] * unit.length
        weights += [unit.weight] * unit.length
    missing = LENGTH - len(ids)
    return Chunk(
        ids=(*ids, *[clip_tokenizer.END] * missing),
        weights=(*weights, *[1.0] * missing),
        placed=tuple(placed),
    )


# --- Conditioning


@torch.no_grad()
def encode(prompt: str, text_encoder: CLIPTextModel, embeddings: Sequence[Embedding] = ()) -> Tensor:
    """What the networks attend to: (1, 77 x chunks, width), of the encoder's dtype and on its device.

    Each chunk is encoded by itself: the last hidden state after the final LayerNorm (CLIP skip 1), times the weights
    of its tokens, scaled so that the mean over the chunk is what it was. Embeddings must be of the encoder's width
    (`embeddings.load` sees to it). Raises PromptError for a prompt that is too long.
    """
    cut = chunks(prompt, embeddings)
    table = text_encoder.embeddings.token_embedding
    inputs = table(torch.tensor([chunk.ids for chunk in cut], device=table.weight.device))
    for row, chunk in zip(inputs, cut, strict=True):
        for position, embedding in chunk.placed:
            row[position : position + len(embedding.vectors)] = embedding.vectors.to(inputs)
    hidden = _attend(text_encoder, inputs)
    weights = torch.tensor([chunk.weights for chunk in cut], device=hidden.device)
    return _weighted(hidden, weights).flatten(0, 1).unsqueeze(0)


def _attend(text_encoder: CLIPTextModel, inputs: Tensor) -> Tensor:
    """The encoder's own forward pass from token embeddings on; it takes ids only, and swapping its table for a while
    would show in every other thread.
    """
    from transformers.masking_utils import create_causal_mask

    hidden = text_encoder.embeddings(inputs_embeds=inputs)
    mask = create_causal_mask(text_encoder.config, hidden, attention_mask=None, past_key_values=None)
    hidden = text_encoder.encoder(inputs_embeds=hidden, attention_mask=mask, is_causal=True).last_hidden_state
    attended: Tensor = text_encoder.final_layer_norm(hidden)
    return attended


def _weighted(hidden: Tensor, weights: Tensor) -> Tensor:
    """(chunks, 77, width) times (chunks, 77), with the mean of each chunk restored; ones change nothing."""
    before = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    after = before * weights.unsqueeze(-1)
    ratio = before.mean((1, 2), keepdim=True) / after.mean((1, 2), keepdim=True)
    return (after * ratio.nan_to_num(nan=1.0).clamp(-_MAX_RESTORATION, _MAX_RESTORATION)).to(hidden.dtype)


_Key = tuple[str, tuple[LoraTag, ...], torch.device, torch.dtype]


class Conditioner:
    """Encodes prompts with one text encoder and remembers the last few, so that defaults are encoded once.

    Safe for several threads as long as nobody changes the encoder's weights meanwhile. What it returns is shared:
    read it, do not write to it.
    """

    _REMEMBERED = 16
    _REMEMBERED_CHUNKS = 8  # long prompts are rare, hardly ever repeated and some MB each

    def __init__(self, text_encoder: CLIPTextModel, embeddings: Sequence[Embedding] = ()) -> None:
        self._text_encoder = text_encoder
        self._embeddings = tuple(embeddings)
        self._encoded: OrderedDict[_Key, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, prompt: str, loras: tuple[LoraTag, ...] = ()) -> Tensor:
        """As `encode`. `loras` are those merged into the encoder at this moment: they change what a prompt gives."""
        table = self._text_encoder.embeddings.token_embedding.weight
        key = (prompt, loras, table.device, table.dtype)
        with self._lock:
            if key in self._encoded:
                self._encoded.move_to_end(key)
                return self._encoded[key]
        encoded = encode(prompt, self._text_encoder, self._embeddings)
        if encoded.shape[1] <= self._REMEMBERED_CHUNKS * LENGTH:
            with self._lock:
                self._encoded[key] = encoded
                if len(self._encoded) > self._REMEMBERED:
                    self._encoded.popitem(last=False)
        return encoded
