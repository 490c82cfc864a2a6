"""Prompts: token ids, emphasis, chunks, embeddings, tags, and encoding."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hiresfix.engine.diffusion import clip_tokenizer, prompts
from hiresfix.engine.diffusion.prompts import Chunk, LoraTag, PromptEncoder, WeightedText
from hiresfix.engine.diffusion.textual_inversion import Embedding
from hiresfix.errors import PromptError
from hiresfix.models.catalog import CLARITY

if TYPE_CHECKING:
    from transformers import CLIPTextModel

WIDTH = 32
CAT, DOG, COMMA = 2368, 1929, 267
UP, DOWN = 1.1, 1 / 1.1
NEGATIVE_NAME = "JuggernautNegative-neg"
NEGATIVE_NAME_IDS = [669, 12367, 5955, 83, 8869, 268, 557, 326]


def text_encoder(*, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> CLIPTextModel:
    """Create a small random CLIP text encoder; `attention` names transformers' implementation."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        bos_token_id=clip_tokenizer.START,
        eos_token_id=clip_tokenizer.END,
    )
    torch.manual_seed(0)
    encoder = CLIPTextModel(config)
    encoder.set_attn_implementation(attention)
    for parameter in encoder.parameters():  # large weights, so that every layer matters
        torch.nn.init.normal_(parameter, std=0.3)
    encoder.requires_grad_(requires_grad=False)
    torch.nn.Module.to(encoder, dtype)
    return encoder


@pytest.fixture(scope="module")
def encoder() -> CLIPTextModel:
    return text_encoder()


def encode_with_transformers(encoder: CLIPTextModel, chunks: tuple[Chunk, ...]) -> Tensor:
    """Encode the ids with transformers' own forward pass, chunk by chunk: (chunks, 77, width)."""
    return torch.cat([encoder(input_ids=torch.tensor([chunk.ids])).last_hidden_state for chunk in chunks])


def embedding(name: str, count: int, *, seed: int = 5) -> Embedding:
    vectors = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))
    return Embedding(name=name, vectors=vectors)


def inner_ids(chunk: Chunk) -> list[int]:
    """Return the ids between the special tokens."""
    return [token for token in chunk.ids if token not in (clip_tokenizer.START, clip_tokenizer.END)]


# --- The tokeniser


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        # algorithm.md 7
        ("masterpiece, best quality, highres,  ", [12066, 267, 949, 3027, 267, 1487, 934, 267]),
        ("worst quality, low quality, normal quality", [5719, 3027, 267, 1042, 3027, 267, 5967, 3027]),
        (NEGATIVE_NAME, NEGATIVE_NAME_IDS),
        # OpenAI's SimpleTokenizer
        ("A photo of a cat, 8k HDR!", [320, 1125, 539, 320, 2368, 267, 279, 330, 28065, 256]),
        ("it's the artist's 1990s film-grain", [585, 568, 518, 2456, 568, 272, 280, 280, 271, 338, 1860, 268, 12109]),
        ("naïve café", [1097, 35689, 563, 15304]),
        (
            "高解像度、傑作",
            [165, 104, 246, 164, 100, 96, 161, 225, 237, 161, 118, 355, 45262, 161, 224, 239, 47466, 506],
        ),
        ("🐈 high-res", [2074, 486, 1400, 268, 934]),
        ("&lt;b&gt; AT&amp;T", [283, 321, 285, 536, 261, 339]),
        ("x" * 60, [*[32035] * 14, 22819]),
        (" \t\n ", []),
    ],
)
def test_token_ids_match_clip(text: str, ids: list[int]) -> None:
    assert clip_tokenizer.token_ids(text) == ids


def test_composed_and_decomposed_accents_are_equal() -> None:
    assert clip_tokenizer.token_ids("cafe\u0301") == clip_tokenizer.token_ids("café")


@pytest.mark.parametrize("text", ["<|endoftext|>", "<|startoftext|> cat", "&lt;|endoftext|&gt;"])
def test_text_never_becomes_a_special_token(text: str) -> None:
    assert not {clip_tokenizer.START, clip_tokenizer.END} & set(clip_tokenizer.token_ids(text))


@settings(deadline=None)
@given(st.text(st.characters(), max_size=60))
def test_any_string_has_ids(text: str) -> None:
    ids = clip_tokenizer.token_ids(text)
    assert all(0 <= token < clip_tokenizer.START for token in ids)
    assert clip_tokenizer.token_ids(text.upper() if text.isascii() else text) == ids


# --- Emphasis


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", []),
        ("a cat, sitting", [("a cat, sitting", 1)]),
        ("an (important) word", [("an ", 1), ("important", UP), (" word", 1)]),
        ("an [unimportant] word", [("an ", 1), ("unimportant", DOWN), (" word", 1)]),
        ("((a))", [("a", UP * UP)]),
        ("[[a]]", [("a", DOWN * DOWN)]),
        ("([a])", [("a", 1)]),
        ("(a:1.3)", [("a", 1.3)]),
        ("(a: 1.3 )", [("a", 1.3)]),
        ("(a:+.5)", [("a", 0.5)]),
        ("(a:2.)", [("a", 2)]),
        ("(a:-1)", [("a", -1)]),
        ("(a:0)", [("a", 0)]),
        ("((a:1.2) b:1.5)", [("a", 1.8), (" b", 1.5)]),
        ("(a (b [c:d]:2) e)", [("a ", UP), ("b ", 2 * UP), ("c:d", 2), (" e", UP)]),
        ("(a [b) c] d", [("a ", UP), ("b", 1), (" c", DOWN), (" d", 1)]),
        # Never closed, or never opened
        ("a (b", [("a ", 1), ("b", UP)]),
        ("a ((b", [("a ", 1), ("b", UP * UP)]),
        ("a [b", [("a ", 1), ("b", DOWN)]),
        ("(a) b)", [("a", UP), (" b)", 1)]),
        ("a:1.3)", [("a:1.3)", 1)]),
        ("a]", [("a]", 1)]),
        # Not numbers
        ("(a:b)", [("a:b", UP)]),
        ("(a:)", [("a:", UP)]),
        ("(a:1.2.3)", [("a:1.2.3", UP)]),
        ("(a:nan)", [("a:nan", UP)]),
        ("(a:١)", [("a:١", UP)]),
        ("[a:1.3]", [("a:1.3", DOWN)]),
        ("time: 12:30", [("time: 12:30", 1)]),
        # Escapes
        (r"a \(b\)", [("a (b)", 1)]),
        (r"(a \(b\):1.2)", [("a (b)", 1.2)]),
        (r"\[a\]", [("[a]", 1)]),
        (r"a\\(b)", [("a\\", 1), ("b", UP)]),
        (r"a\b", [("ab", 1)]),
        ("a\\", [("a", 1)]),
        # Neighbours of equal weight are joined
        ("(hel)(lo)", [("hello", UP)]),
        ("()", []),
        ("a()b", [("ab", 1)]),
    ],
)
def test_emphasis(prompt: str, expected: list[tuple[str, float]]) -> None:
    (section,) = prompts.parse_emphasis(prompt)
    assert [piece.text for piece in section] == [text for text, _ in expected]
    assert [piece.weight for piece in section] == pytest.approx([weight for _, weight in expected])


def test_default_negative_prompt_has_weight_two() -> None:
    negative = CLARITY.preset.negative_prompt
    assert prompts.parse_emphasis(negative) == (
        (WeightedText(text="worst quality, low quality, normal quality", weight=2.0),),
    )
    (chunk,) = prompts.split_chunks(negative)
    assert inner_ids(chunk) == [5719, 3027, 267, 1042, 3027, 267, 5967, 3027]
    assert chunk.weights == (1.0, *[2.0] * 8, *[1.0] * 68)


def test_weights_are_clamped_to_ten() -> None:
    for prompt in ("(a:99999)", f"(a:{'9' * 5000})", "(" * 2000 + "a", "((a:9):9)", f"((a:{'9' * 400}):0)"):
        assert abs(prompts.parse_emphasis(prompt)[0][0].weight) <= 10
    assert prompts.parse_emphasis("(a:-99999)")[0][0].weight == -10


@pytest.mark.parametrize(
    ("prompt", "sections"),
    [
        ("a BREAK b", [["a "], [" b"]]),
        ("aBREAK BREAKb breakfast break", [["aBREAK BREAKb breakfast break"]]),
        ("BREAK a", [[], [" a"]]),
        ("a BREAK", [["a "], []]),
        ("a,BREAK,b", [["a,"], [",b"]]),
        ("(a BREAK b:1.5) c", [["a "], [" b", " c"]]),
    ],
)
def test_break_ends_a_section(prompt: str, sections: list[list[str]]) -> None:
    parsed = prompts.parse_emphasis(prompt)
    assert [[piece.text for piece in section] for section in parsed] == sections
    if "1.5" in prompt:
        assert [[piece.weight for piece in section] for section in parsed] == [[1.5], [1.5, 1.0]]


MARKS = st.sampled_from(
    ["(", ")", "[", "]", ":", ":1.3)", ":-.5 )", "\\", "BREAK", ",", " ", "a cat", "<lora:x:1>", "é"]
)
PROMPTS = st.one_of(st.text(st.characters(), max_size=80), st.lists(MARKS, max_size=60).map("".join))


@settings(deadline=None, max_examples=300)
@given(PROMPTS)
def test_parsing_loses_only_marks(prompt: str) -> None:
    sections = prompts.parse_emphasis(prompt)
    for section in sections:
        assert all(piece.text and abs(piece.weight) <= 10 for piece in section)
        assert all(left.weight != right.weight for left, right in itertools.pairwise(section))
    remaining = "".join(piece.text for section in sections for piece in section)
    strip = re.compile(r"[()\[\]\\:.\-+\s0-9]|BREAK")
    assert strip.sub("", remaining) == strip.sub("", prompt)


@settings(deadline=None)
@given(PROMPTS.filter(lambda text: not re.search(r"[()\[\]\\]|BREAK", text)))
def test_text_without_marks_is_unchanged(prompt: str) -> None:
    assert prompts.parse_emphasis(prompt) == ((WeightedText(text=prompt, weight=1.0),) if prompt else (),)


# --- Chunks


def lengths(chunks: tuple[Chunk, ...]) -> list[int]:
    return [len(inner_ids(chunk)) for chunk in chunks]


def test_empty_prompt_is_one_padded_chunk() -> None:
    assert prompts.split_chunks("") == (Chunk(ids=(49406, *[49407] * 76), weights=(1.0,) * 77),)


def test_76th_token_starts_a_second_chunk() -> None:
    assert [chunk.ids for chunk in prompts.split_chunks("cat " * 75)] == [(49406, *[CAT] * 75, 49407)]
    first, second = prompts.split_chunks("cat " * 76)
    assert first.ids == (49406, *[CAT] * 75, 49407)
    assert second.ids == (49406, CAT, *[49407] * 75)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (55, 30, [56, 30]),  # the comma is the 20th token from the end
        (54, 30, [75, 10]),  # the comma is one token too far back
        (74, 30, [75, 30]),  # the comma is the last token
        (75, 30, [75, 31]),  # the comma itself starts the next chunk: nothing moves
        (60, 14, [75]),  # nothing follows the full chunk
        (60, 15, [61, 15]),
    ],
)
def test_full_chunk_splits_at_recent_comma(before: int, after: int, expected: list[int]) -> None:
    chunks = prompts.split_chunks("cat " * before + "," + " dog" * after)
    assert lengths(chunks) == expected
    assert [token for chunk in chunks for token in inner_ids(chunk)] == [CAT] * before + [COMMA] + [DOG] * after


def test_comma_after_full_chunk_keeps_phrase_whole() -> None:
    first, second = prompts.split_chunks("cat " * 60 + "," + " dog" * 14 + ", cat")
    assert inner_ids(first) == [CAT] * 60 + [COMMA] + [DOG] * 14
    assert inner_ids(second) == [COMMA, CAT]


def test_moved_tokens_keep_their_weight() -> None:
    first, second = prompts.split_chunks("cat " * 60 + ",(" + " dog" * 15 + ":1.5)")
    assert first.weights == (1.0,) * 77
    assert second.weights == (1.0, *[1.5] * 15, *[1.0] * 61)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("cat BREAK dog", [[CAT], [DOG]]),
        ("cat BREAK", [[CAT]]),
        ("BREAK cat", [[], [CAT]]),
        ("cat BREAK BREAK dog", [[CAT], [], [DOG]]),
        ("(cat BREAK dog:1.4)", [[CAT], [DOG]]),
    ],
)
def test_break_starts_a_chunk(prompt: str, expected: list[list[int]]) -> None:
    assert [inner_ids(chunk) for chunk in prompts.split_chunks(prompt)] == expected


@settings(deadline=None, max_examples=200)
@given(PROMPTS, st.integers(1, 30), st.integers(0, 75))
def test_chunks_contain_every_token_in_order(prompt: str, times: int, vectors: int) -> None:
    prompt *= times
    known = [embedding("cat", vectors)] if vectors else []
    try:
        chunks = prompts.split_chunks(prompt, known)
    except PromptError:
        # Only a BREAK or an embedding leaves a chunk with fewer than 56 tokens.
        left = prompt.count("BREAK") + 2 * len(re.findall("cat", prompt, re.IGNORECASE)) * bool(known)
        assert 1 + left + len(clip_tokenizer.token_ids(prompt)) / 56 > prompts.MAX_CHUNKS
        return
    assert 1 <= len(chunks) <= prompts.MAX_CHUNKS
    inside: list[int] = []
    for chunk in chunks:
        assert len(chunk.ids) == len(chunk.weights) == 77
        assert (chunk.ids[0], chunk.ids[-1], chunk.weights[0], chunk.weights[-1]) == (
            clip_tokenizer.START,
            clip_tokenizer.END,
            1,
            1,
        )
        end = chunk.ids.index(clip_tokenizer.END)
        assert set(chunk.ids[end:]) == {clip_tokenizer.END}
        assert all(1 <= position <= end - vectors for position, _ in chunk.placed_embeddings)
        ids = list(chunk.ids[1:end])
        for position, _ in reversed(chunk.placed_embeddings):
            ids[position - 1 : position - 1 + vectors] = [CAT]
        inside += ids
    expected = [
        token
        for section in prompts.parse_emphasis(prompt)
        for piece in section
        for token in clip_tokenizer.token_ids(piece.text)
    ]
    assert inside == expected


def test_long_prompts_work_and_endless_ones_are_rejected() -> None:
    chunks = prompts.split_chunks(("a photograph of a lighthouse in a storm, " * 250)[:10_000])
    assert 30 < len(chunks) <= prompts.MAX_CHUNKS
    assert len(prompts.split_chunks("高" * 2000)) <= prompts.MAX_CHUNKS
    for prompt in ("cat " * 75 * 129, "cat BREAK " * 129, "(" * 100_000 + "cat " * 10_000):
        with pytest.raises(PromptError, match=r"at most 128 are read\. Shorten it"):
            prompts.split_chunks(prompt)
    assert len(prompts.split_chunks("cat " * 75 * 128)) == 128


# --- Textual inversion


def test_embedding_replaces_tokens_of_its_name() -> None:
    known = embedding(NEGATIVE_NAME, 5)
    (chunk,) = prompts.split_chunks(f"(cat:2) {NEGATIVE_NAME.upper()}, dog", [known])
    assert chunk.placed_embeddings == ((2, known),)
    assert (chunk.ids[1], chunk.ids[7:9]) == (CAT, (COMMA, DOG))
    assert chunk.ids[9:] == (clip_tokenizer.END,) * 68
    assert chunk.weights == (1.0, 2.0, *[1.0] * 75)


def test_emphasis_applies_to_every_vector() -> None:
    (chunk,) = prompts.split_chunks("cat (style:1.5) dog", [embedding("style", 3)])
    assert chunk.weights[:7] == (1.0, 1.0, 1.5, 1.5, 1.5, 1.0, 1.0)


def test_longest_embedding_name_wins() -> None:
    short, long, other = embedding("bad", 1), embedding("bad hands", 2), embedding("BAD", 3)
    (chunk,) = prompts.split_chunks("bad hands, bad", [short, other, long])
    assert chunk.placed_embeddings == ((1, long), (4, short))


def test_embedding_name_matches_whole_tokens_repeatedly() -> None:
    known = embedding("cat", 2)
    (chunk,) = prompts.split_chunks("cats cat cat bobcat", [known])
    assert [position for position, _ in chunk.placed_embeddings] == [2, 4]
    assert inner_ids(chunk) == [*clip_tokenizer.token_ids("cats"), 0, 0, 0, 0, *clip_tokenizer.token_ids("bobcat")]


def test_embedding_name_without_tokens_never_matches() -> None:
    (chunk,) = prompts.split_chunks("cat", [embedding(" ", 2)])
    assert (inner_ids(chunk), chunk.placed_embeddings) == ([CAT], ())


def test_embedding_is_never_split_between_chunks() -> None:
    known = embedding("style", 4)
    first, second = prompts.split_chunks("cat " * 72 + "style dog", [known])
    assert (len(inner_ids(first)), first.placed_embeddings) == (72, ())
    assert (second.placed_embeddings, second.ids[5]) == (((1, known),), DOG)
    (only,) = prompts.split_chunks("cat " * 71 + "style", [known])
    assert only.placed_embeddings == ((72, known),)


def test_embedding_moves_with_tokens_after_comma() -> None:
    known = embedding("style", 4)
    first, second = prompts.split_chunks("cat " * 60 + ", dog style " + "cat " * 10, [known])
    assert (lengths((first,)), first.placed_embeddings) == ([61], ())
    assert second.placed_embeddings == ((2, known),)
    assert inner_ids(second) == [DOG, *[0] * 4, *[CAT] * 10]


def test_embedding_of_75_vectors_fills_a_chunk() -> None:
    known = embedding("style", 75)
    chunks = prompts.split_chunks("cat, style dog", [known])
    assert [chunk.placed_embeddings for chunk in chunks] == [(), ((1, known),), ()]
    assert chunks[1].ids[-1] == clip_tokenizer.END


# --- Tags


def test_original_prompt_tags_are_extracted() -> None:
    tags = prompts.extract_tags(
        "masterpiece, best quality, highres, <lora:more_details:0.5> <lora:SDXLrender_v2.0:1>",
        {"more_details", "SDXLrender_v2.0"},
    )
    assert tags.prompt == "masterpiece, best quality, highres,  "
    assert tags.loras == (
        LoraTag(name="more_details", text_encoder=0.5, unet=0.5),
        LoraTag(name="SDXLrender_v2.0", text_encoder=1.0, unet=1.0),
    )
    assert tags.warnings == ()


@pytest.mark.parametrize(
    ("tag", "text_encoder", "unet"),
    [
        ("<lora:a>", 1, 1),
        ("<lora:a:0.5>", 0.5, 0.5),
        ("<lora:a:0.5:0.7>", 0.5, 0.7),
        ("<lora: a : -1 : 0 >", -1, 0),
        ("<lora:a:te=0.2:unet=0.3>", 0.2, 0.3),
        ("<lora:a:unet=0.3>", 1, 0.3),
        ("<lora:a:0.5:0.7:8>", 0.5, 0.7),
        ("<lyco:a:0.5:dyn=4>", 0.5, 0.5),
    ],
)
def test_lora_multipliers_by_position_or_name(tag: str, text_encoder: float, unet: float) -> None:
    tags = prompts.extract_tags(f"x{tag}y", ["a"])
    assert tags.prompt == "xy"
    assert tags.loras == (LoraTag(name="a", text_encoder=text_encoder, unet=unet),)


@pytest.mark.parametrize(
    ("tag", "reason"),
    [
        ("<lora:stranger:1>", "The LoRA stranger was ignored: it is not offered here."),
        ("<lora:../../etc/passwd:1>", "The LoRA ../../etc/passwd was ignored: it is not offered here."),
        ("<hypernet:a:1>", "The tag <hypernet:a:1> was ignored: only lora tags are known."),
        ("<lora:a:much>", "The tag <lora:a:much> was ignored: 'much' is not a number between -10 and 10."),
        ("<lora:a:nan>", "'nan' is not a number"),
        ("<lora:a:1:1e9>", "'1e9' is not a number"),
        ("<lora::1>", "it does not name a LoRA"),
        ("<lora:te=1>", "it does not name a LoRA"),
    ],
)
def test_ignored_tag_is_removed_with_warning(tag: str, reason: str) -> None:
    tags = prompts.extract_tags(f"cat {tag}", ["a"])
    assert (tags.prompt, tags.loras) == ("cat ", ())
    (warning,) = tags.warnings
    assert reason in warning


@pytest.mark.parametrize("prompt", ["a < b > c", "<3", "<lora>", "<lora:>", "<lora:a:1", "lora:a:1>"])
def test_text_that_is_not_a_tag_stays(prompt: str) -> None:
    assert prompts.extract_tags(prompt, ["a"]) == prompts.ExtractedTags(prompt=prompt, loras=(), warnings=())


def test_tag_in_negative_prompt_is_words() -> None:
    (chunk,) = prompts.split_chunks("<lora:cat:1>")
    assert CAT in chunk.ids
    assert inner_ids(chunk) == clip_tokenizer.token_ids("<lora:cat:1>")


# --- The text encoder


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("prompt", ["", CLARITY.preset.prompt, "a red fox, " * 40, "cat BREAK dog"])
def test_plain_prompt_equals_transformers(attention: str, prompt: str) -> None:
    encoder = text_encoder(attention=attention)
    chunks = prompts.split_chunks(prompt)
    encoded = prompts.encode(prompt, encoder)
    assert encoded.shape == (1, 77 * len(chunks), WIDTH)
    torch.testing.assert_close(
        encoded.view(len(chunks), 77, WIDTH), encode_with_transformers(encoder, chunks), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_result_has_encoder_dtype_and_exact_bits(dtype: torch.dtype) -> None:
    encoder = text_encoder(dtype=dtype)
    encoded = prompts.encode("a cat", encoder)
    assert (encoded.dtype, encoded.requires_grad) == (dtype, False)
    assert torch.equal(encoded, encode_with_transformers(encoder, prompts.split_chunks("a cat")))


def test_weights_scale_tokens_and_keep_chunk_mean(encoder: CLIPTextModel) -> None:
    prompt = "a (red:1.6) fox, [blurry] (sky:-0.4) BREAK plain words BREAK (all of it:2)"
    chunks = prompts.split_chunks(prompt)
    before, after = encode_with_transformers(encoder, chunks), prompts.encode(prompt, encoder).view(3, 77, WIDTH)
    torch.testing.assert_close(after.mean((1, 2)), before.mean((1, 2)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after[1], before[1], rtol=1e-5, atol=1e-5)
    weights = torch.tensor([chunk.weights for chunk in chunks]).unsqueeze(-1)
    weighted = before * weights
    restored = weighted * (before.mean((1, 2)) / weighted.mean((1, 2))).view(3, 1, 1)
    torch.testing.assert_close(after, restored, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(after[0], before[0], atol=1e-2)


@pytest.mark.parametrize("weight", ["0", "-1", "10", "-10", "1e9", "0.0000001"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_any_weight_gives_finite_values(weight: str, dtype: torch.dtype) -> None:
    encoder = text_encoder(dtype=dtype)
    assert bool(prompts.encode("(" + "cat " * 75 + f":{weight})", encoder).isfinite().all())


def test_zero_mean_gives_finite_values() -> None:
    hidden = torch.tensor([[[1.0, 1.0], [2.0, 2.0]], [[1.0, -1.0], [3.0, -3.0]]])
    weighted = prompts._apply_weights(hidden, torch.tensor([[2.0, -1.0], [5.0, 1.0]]))
    assert bool(weighted.isfinite().all())
    # The second chunk has no mean to restore, so its weights apply directly.
    assert torch.equal(weighted[1], torch.tensor([[5.0, -5.0], [3.0, -3.0]]))


def test_embedding_vectors_replace_the_name(encoder: CLIPTextModel) -> None:
    """Compare with an encoder whose table has the vectors as extra tokens."""
    known = embedding(NEGATIVE_NAME, 5)
    prompt = f"(bad:1.5) {NEGATIVE_NAME}, cat BREAK {NEGATIVE_NAME}"
    taught = copy.deepcopy(encoder)
    unused = range(30_000, 30_005)
    taught.embeddings.token_embedding.weight[list(unused)] = known.vectors
    chunks = prompts.split_chunks(prompt, [known])
    spelt = []
    for chunk in chunks:
        ids = list(chunk.ids)
        for position, _ in chunk.placed_embeddings:
            ids[position : position + 5] = unused
        spelt.append(Chunk(ids=tuple(ids), weights=chunk.weights))
    before = encode_with_transformers(taught, tuple(spelt))
    weighted = before * torch.tensor([chunk.weights for chunk in chunks]).unsqueeze(-1)
    expected = weighted * (before.mean((1, 2)) / weighted.mean((1, 2))).view(2, 1, 1)
    encoded = prompts.encode(prompt, encoder, [known]).view(2, 77, WIDTH)
    torch.testing.assert_close(encoded, expected, rtol=1e-4, atol=1e-4)


def test_embedding_of_own_token_vectors_changes_nothing(encoder: CLIPTextModel) -> None:
    own = encoder.embeddings.token_embedding.weight[[CAT, DOG]].clone()
    known = Embedding(name="pets", vectors=own)
    torch.testing.assert_close(
        prompts.encode("a pets, sleeping", encoder, [known]), prompts.encode("a cat dog, sleeping", encoder)
    )


def test_encoder_is_shared_by_threads_unchanged(encoder: CLIPTextModel) -> None:
    untouched = copy.deepcopy(encoder.state_dict())
    styles = [embedding("style", 2, seed=seed) for seed in range(4)]
    alone = [prompts.encode("a style, cat", encoder, [style]) for style in styles]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda style: prompts.encode("a style, cat", encoder, [style]), styles * 5))
    torch.testing.assert_close(together, alone * 5)
    assert not torch.allclose(alone[0], alone[1], atol=1e-2)
    torch.testing.assert_close(encoder.state_dict(), untouched, rtol=0, atol=0)


# --- Cache


@pytest.fixture
def passes(encoder: CLIPTextModel) -> Iterator[Callable[[], int]]:
    """Return a function that counts the runs of the encoder."""
    count = 0

    def add(*_: object) -> None:
        nonlocal count
        count += 1

    hook = encoder.final_layer_norm.register_forward_hook(add)
    yield lambda: count
    hook.remove()


def test_prompt_is_encoded_once_per_lora_set(encoder: CLIPTextModel, passes: Callable[[], int]) -> None:
    prompt_encoder = PromptEncoder(encoder, [embedding("style", 2)])
    first = prompt_encoder("cat, style")
    assert prompt_encoder("cat, style") is first
    assert passes() == 1
    torch.testing.assert_close(first, prompts.encode("cat, style", encoder, [embedding("style", 2)]))
    assert passes() == 2
    lora = LoraTag(name="a", text_encoder=1.0, unet=1.0)
    for loras in ((), (lora,), (LoraTag(name="a", text_encoder=0.5, unet=1.0),), (lora,)):
        prompt_encoder("dog", loras)
    assert passes() == 5


def test_dtype_change_invalidates_cache() -> None:
    encoder = text_encoder()
    prompt_encoder = PromptEncoder(encoder)
    assert prompt_encoder("cat").dtype == torch.float32
    torch.nn.Module.to(encoder, torch.float64)
    assert prompt_encoder("cat").dtype == torch.float64


def test_cache_keeps_recent_short_prompts(encoder: CLIPTextModel, passes: Callable[[], int]) -> None:
    prompt_encoder = PromptEncoder(encoder)
    default = prompt_encoder("default")
    for number in range(40):
        prompt_encoder(f"prompt {number}")
        assert prompt_encoder("default") is default
    assert passes() == 41
    prompt_encoder("prompt 39")
    assert passes() == 41
    prompt_encoder("prompt 0")
    assert passes() == 42
    for _ in range(2):
        prompt_encoder("cat BREAK " * 9)
    assert passes() == 44
