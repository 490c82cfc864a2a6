"""The public contract, reading: what is accepted, as what, and what the rest is refused with."""

from __future__ import annotations

import ast
import base64
import json
import math
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hiresfix import wire
from hiresfix.errors import ImageError, InvalidRequest
from hiresfix.models import catalog
from hiresfix.models.catalog import CLARITY, FAITHFUL, MODELS, CatalogModel
from hiresfix.models.parameters import Param
from hiresfix.models.pricing import flat
from hiresfix.recipe import MAX_SEED, Recipe
from tests import ROOT

IMAGE = "https://example.com/input.jpg"
PARAMS = "clarityUpscaleParams"
JSON = "application/json"
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
DEFAULTS = {
    "prompt": "masterpiece, best quality, highres",
    "negative_prompt": "(worst quality, low quality, normal quality:2)",
    "scale_factor": 2,
    "creativity": 0.35,
    "resemblance": 0.6,
    "dynamic": 6,
    "num_inference_steps": 18,
    "sharpen": 0,
    "output_format": "png",
}


def body(params: object = None, /, **top: object) -> dict[str, Any]:
    """A valid request with these params and top-level fields; `...` as a value leaves the field out."""
    inner = {"image": IMAGE, **params} if isinstance(params, dict) else params or {"image": IMAGE}
    sent: dict[str, Any] = {"model": "clarity-upscale", PARAMS: inner, **top}
    return {key: value for key, value in sent.items() if value is not ...}


def read(sent: object, content_type: str | None = JSON, **options: bool) -> wire.UpscaleRequest:
    raw = sent if isinstance(sent, bytes) else json.dumps(sent).encode()
    return wire.parse_upscale(raw, content_type, **options)


def problems(sent: object, content_type: str | None = JSON, **options: bool) -> dict[str, list[str]]:
    with pytest.raises(InvalidRequest) as refused:
        read(sent, content_type, **options)
    json.dumps(refused.value.details, ensure_ascii=False).encode()  # whatever was sent, the answer can be sent
    return refused.value.details


# --- the canonical request, its defaults and its equal spellings (4.1-4.3, D1, D3-D6)


def test_contract_example_is_read() -> None:
    sent = {
        "image": IMAGE,
        "prompt": "highly detailed, sharp focus",
        "negative_prompt": "blurry",
        "scale_factor": 2,
        "creativity": 0.35,
        "resemblance": 0.6,
        "dynamic": 6,
        "num_inference_steps": 18,
        "sharpen": 0,
        "output_format": "png",
        "seed": 12345,
    }
    request = read(body(sent, webhookUrl="https://client.example/hook", webhookEvents=["completed", "failed"]))
    assert request.model is CLARITY
    assert {"image": request.image, **request.values} == sent
    assert request.webhook == wire.WebhookTarget(url="https://client.example/hook", events=("completed", "failed"))


def test_image_alone_gets_defaults_and_no_seed() -> None:
    request = read(body())
    assert request.values == DEFAULTS
    assert request.webhook is None
    assert isinstance(request.values["dynamic"], float)
    assert isinstance(request.values["scale_factor"], int)
    assert type(request.values["output_format"]) is str


def test_values_make_a_recipe() -> None:
    recipe = CLARITY.recipe(read(body({"scale_factor": "4x", "seed": 0})).values, seed=99)
    assert recipe == replace(CLARITY.preset, scale=4, seed=0)
    faithful = read({"model": "faithful-upscale", "faithfulUpscaleParams": {"image": IMAGE, "content": "Anime"}})
    assert FAITHFUL.recipe(faithful.values, seed=7).enlarger == "realesrgan-x4plus-anime"


@pytest.mark.parametrize(
    ("name", "sent", "canonical"),
    [
        ("scale_factor", 2, 2),
        ("scale_factor", 2.0, 2),
        ("scale_factor", "2", 2),
        ("scale_factor", "2.0", 2),
        ("scale_factor", "2x", 2),
        ("scale_factor", " 4X ", 4),
        ("scale_factor", "8", 8),
        ("scale_factor", 1, 1),
        ("creativity", "0.35", 0.35),
        ("creativity", 0.123456789, 0.123456789),
        ("creativity", 1, 1.0),
        ("creativity", 0, 0.0),
        ("creativity", "1e-1", 0.1),
        ("creativity", ".5", 0.5),
        ("creativity", "+1.", 1.0),
        ("resemblance", 3, 3.0),
        ("dynamic", 50, 50.0),
        ("dynamic", "1e1", 10.0),
        ("dynamic", 6.5, 6.5),
        ("num_inference_steps", 18.0, 18),
        ("num_inference_steps", "18.0", 18),
        ("num_inference_steps", " 18 ", 18),
        ("num_inference_steps", "1E1", 10),
        ("num_inference_steps", 100, 100),
        ("sharpen", "10", 10.0),
        ("output_format", "PNG", "png"),
        ("output_format", "JPEG", "jpg"),
        ("output_format", " jpeg ", "jpg"),
        ("output_format", "Webp", "webp"),
        ("seed", 0, 0),
        ("seed", "0012", 12),
        ("seed", -0.0, 0),
        ("seed", MAX_SEED, MAX_SEED),
        ("seed", str(MAX_SEED), MAX_SEED),
        ("prompt", "  keep my blanks \n", "  keep my blanks \n"),
        ("prompt", " ", " "),
        ("prompt", "日本語 한국어 🙂", "日本語 한국어 🙂"),
        ("prompt", "🙂" * 2000, "🙂" * 2000),
    ],
)
def test_spelling_becomes_canonical_value(name: str, sent: object, canonical: object) -> None:
    value = read(body({name: sent})).values[name]
    assert value == canonical
    assert type(value) is type(canonical)


@pytest.mark.parametrize("sent", [-0.0, "-0", "-0.0"])
def test_minus_zero_is_zero(sent: object) -> None:
    request = read(body({"sharpen": sent}))
    assert math.copysign(1, request.values["sharpen"]) == 1  # type: ignore[arg-type]  # it is a number
    assert request.fingerprint == read(body()).fingerprint


@pytest.mark.parametrize("name", [*DEFAULTS, "seed"])
@pytest.mark.parametrize("nothing", [None, ""])
def test_null_and_empty_string_count_as_absent(name: str, nothing: object) -> None:
    assert read(body({name: nothing})) == read(body())


@pytest.mark.parametrize("name", [name for name in (*DEFAULTS, "seed") if "prompt" not in name])
def test_blanks_count_as_absent_except_in_text(name: str) -> None:
    assert read(body({name: " \t"})) == read(body())


@pytest.mark.parametrize("random", [-1, "-1", -1.0, " -1 "])
def test_minus_one_means_random_seed(random: object) -> None:
    assert read(body({"seed": random})) == read(body())


def test_sent_default_equals_omitted_default() -> None:
    assert read(body(DEFAULTS)) == read(body())


CAMEL = {
    "image": "imageUrl",
    "negative_prompt": "negativePrompt",
    "scale_factor": "scaleFactor",
    "num_inference_steps": "numInferenceSteps",
    "output_format": "outputFormat",
}
OTHER_SPELLINGS = [
    *CAMEL.items(),
    ("image", "image_url"),
    ("scale_factor", "upscale_factor"),
    ("scale_factor", "upscaleFactor"),
]
SAMPLE: dict[str, Any] = {
    "image": "https://example.com/other.png",
    "negative_prompt": "mud",
    "scale_factor": 4,
    "num_inference_steps": 7,
    "output_format": "webp",
}


@pytest.mark.parametrize(("name", "alias"), OTHER_SPELLINGS)
def test_alias_in_params_loses_to_canonical_name(name: str, alias: str) -> None:
    plain = read(body({"image": IMAGE, name: SAMPLE[name]}))
    aliased = {"image": IMAGE, alias: SAMPLE[name]}
    if name == "image":
        del aliased["image"]
    assert read({"model": "clarity-upscale", PARAMS: aliased}) == plain
    assert read(body({name: SAMPLE[name], alias: "never looked at"})) == plain
    assert read({"model": "clarity-upscale", PARAMS: {**aliased, name: aliased.get(name)}}) == plain


@pytest.mark.parametrize("key", ["clarity_upscale_params", "clarityUpscalerParams"])
def test_params_object_has_aliases(key: str) -> None:
    assert read({"model": "clarity-upscale", key: {"image": IMAGE}}) == read(body())
    assert read(body(None, **{key: {"image": "ftp://lost"}})) == read(body())


@pytest.mark.parametrize("name", ["clarity-upscale", "clarity-upscaler", "Clarity-Upscale", " CLARITY-UPSCALER "])
def test_model_has_aliases(name: str) -> None:
    assert read(body(model=name)) == read(body())


def test_nested_prompt_wins_over_top_level() -> None:
    expected = read(body({"prompt": "moss", "negative_prompt": "mud"}))
    assert read(body(prompt="moss", negative_prompt="mud")) == expected
    assert read(body(prompt="moss", negativePrompt="mud")) == expected
    assert read(body({"prompt": "moss", "negative_prompt": "mud"}, prompt="a", negative_prompt="b")) == expected
    assert read(body({"prompt": "", "negative_prompt": None}, prompt="moss", negative_prompt="mud")) == expected


def test_wrong_top_level_prompt_is_reported_there() -> None:
    assert problems(body(prompt=5, negative_prompt="x" * 2001)) == {
        "prompt": ["Expected a string"],
        "negative_prompt": ["Must be at most 2000 characters"],
    }


# --- webhooks


def test_camel_case_webhook_fields_win() -> None:
    expected = read(body(webhookUrl="https://a.example/h", webhookEvents=["failed"]))
    assert expected.webhook == wire.WebhookTarget(url="https://a.example/h", events=("failed",))
    assert read(body(webhook_url="https://a.example/h", webhook_events=["failed"])) == expected
    both = body(
        webhookUrl="https://a.example/h", webhook_url="gopher://b", webhookEvents=["failed"], webhook_events=["no"]
    )
    assert read(both) == expected
    assert (
        read(body(webhookUrl="", webhook_url="https://a.example/h", webhookEvents=None, webhook_events="failed"))
        == expected
    )


@pytest.mark.parametrize(
    ("sent", "events"),
    [
        (..., ("completed", "failed")),
        (None, ("completed", "failed")),
        ("", ("completed", "failed")),
        ("completed,failed", ("completed", "failed")),
        (" Failed , PROGRESS ,", ("progress", "failed")),
        ("completed", ("completed",)),
        (["failed", "completed", "progress"], ("progress", "completed", "failed")),
        (["COMPLETED", "completed", " completed "], ("completed",)),
    ],
)
def test_events_are_canonical(sent: object, events: tuple[str, ...]) -> None:
    hook = read(body(webhookUrl="https://a.example/h", webhookEvents=sent)).webhook
    assert hook is not None
    assert hook.events == events


ONE_EVENT = "Expected one of progress, completed, failed"


@pytest.mark.parametrize(
    ("sent", "details"),
    [
        (["done"], {"webhookEvents.0": [ONE_EVENT]}),
        (["completed", 1, None, "x"], {f"webhookEvents.{index}": [ONE_EVENT] for index in (1, 2, 3)}),
        ("completed,ended", {"webhookEvents.1": [ONE_EVENT]}),
        ([], {"webhookEvents": ["Expected at least one of progress, completed, failed"]}),
        (" , ", {"webhookEvents": ["Expected at least one of progress, completed, failed"]}),
        ({"completed": True}, {"webhookEvents": ["Expected an array"]}),
        (True, {"webhookEvents": ["Expected an array"]}),
        (["failed"] * 21, {"webhookEvents": ["Must have at most 20 items"]}),
    ],
)
def test_wrong_events_are_reported_by_index(sent: object, details: object) -> None:
    assert problems(body(webhookUrl="https://a.example/h", webhookEvents=sent)) == details
    assert problems(body(webhookEvents=sent)) == details


def test_events_without_url_make_no_webhook() -> None:
    assert read(body(webhookEvents=["completed"])) == read(body())


@pytest.mark.parametrize(
    "url",
    ["data:image/png;base64,AAAA", "ftp://a.example/", "/hook", "javascript:alert(1)", 5, ["https://a.example"], " "],
)
def test_webhook_needs_http_url(url: object) -> None:
    assert problems(body(webhookUrl=url)) == {"webhookUrl": ["Expected an http(s) URL"]}


# --- the image


@pytest.mark.parametrize(
    ("sent", "canonical"),
    [
        ("http://example.com/a.png", "http://example.com/a.png"),
        ("  https://example.com/a.png\n", "https://example.com/a.png"),
        ("HTTPS://Example.COM:8443/A.png?x=1&y=a@b#f", "HTTPS://Example.COM:8443/A.png?x=1&y=a@b#f"),
        ("https://example.com/my picture.png", "https://example.com/my%20picture.png"),
        ("https://例え.jp/画像.png", "https://例え.jp/画像.png"),
        ("http://[2001:db8::1]:8080/a", "http://[2001:db8::1]:8080/a"),
        ("http://127.0.0.1/left-to-the-outbound-guard", "http://127.0.0.1/left-to-the-outbound-guard"),
        ("data:image/png;base64,QUJD", "data:image/png;base64,QUJD"),
        ("DATA:Image/PNG;charset=utf-8;BASE64,QUI=", "data:image/png;base64,QUI="),
        ("data:image/svg+xml;base64,QQ==", "data:image/svg+xml;base64,QQ=="),
        ("data:image/png;base64, QU\r\n JD\t", "data:image/png;base64,QUJD"),
        ("data:image/png;base64,QQ", "data:image/png;base64,QQ=="),
        ("data:image/png;base64,-_-_", "data:image/png;base64,+/+/"),
    ],
)
def test_image_is_url_or_data_uri(sent: str, canonical: str) -> None:
    assert read(body({"image": sent})).image == canonical


NOT_A_PICTURE = "Expected an http(s) URL or data:image/...;base64,..."
NO_HOST = "Must have a valid host and port"
DAMAGED = "The data URI is damaged: its base64 does not decode"


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (None, "Required"),
        ("", "Required"),
        ("   ", "Required"),
        (5, NOT_A_PICTURE),
        (True, NOT_A_PICTURE),
        ([IMAGE], NOT_A_PICTURE),
        ({"url": IMAGE}, NOT_A_PICTURE),
        ("example.com/a.png", NOT_A_PICTURE),
        ("/files/a.png", NOT_A_PICTURE),
        ("//example.com/a.png", NOT_A_PICTURE),
        ("javascript:alert(1)", NOT_A_PICTURE),
        ("file:///etc/passwd", NOT_A_PICTURE),
        ("ftp://example.com/a.png", NOT_A_PICTURE),
        ("blob:https://example.com/1", NOT_A_PICTURE),
        ("data:text/html;base64,QUJD", NOT_A_PICTURE),
        ("data:image/png,raw", NOT_A_PICTURE),
        ("data:image/png;base64", NOT_A_PICTURE),
        ("data:image/png" + ";" * 300 + ";base64,QUJD", NOT_A_PICTURE),
        ("https:///a.png", NO_HOST),
        ("https://", NO_HOST),
        ("https:example.com", NO_HOST),
        ("https://exa mple.com/", NO_HOST),
        ("https://example.com\\@evil.example/", "Must not contain a user name or password"),
        ("https://example.com\\evil.example/", NO_HOST),
        ("https://%31%32%37.0.0.1/", NO_HOST),
        ("https://[::1/", NO_HOST),
        ("https://[fe80::1%25eth0]/", NO_HOST),
        ("https://example.com:99999/", NO_HOST),
        ("https://example.com:port/", NO_HOST),
        ("https://user:secret@example.com/", "Must not contain a user name or password"),
        ("https://@example.com/", "Must not contain a user name or password"),
        ("https://example.com/\x00", "Must not contain control characters"),
        ("https://exam\nple.com/", "Must not contain control characters"),
        ("https://example.com/\ud800", "Must not contain control characters"),
        ("https://example.com/" + "a" * 8192, "Must be at most 8192 characters"),
        ("data:image/png;base64,", "The data URI holds no image"),
        ("data:image/png;base64,  \n", "The data URI holds no image"),
        ("data:image/png;base64,A", DAMAGED),
        ("data:image/png;base64,QQ=", DAMAGED),
        ("data:image/png;base64,QQ==QQ==", DAMAGED),
        ("data:image/png;base64,====", DAMAGED),
        ("data:image/png;base64,=QUI", DAMAGED),
        ("data:image/png;base64,Q=Q=", DAMAGED),
        ("data:image/png;base64,QU%4D", DAMAGED),
        ("data:image/png;base64,QU\x00D", DAMAGED),
        ("data:image/png;base64,画像", "The data URI holds characters that are not base64"),
    ],
)
def test_invalid_image_is_refused(sent: object, message: str) -> None:
    assert problems(body({"image": sent})) == {f"{PARAMS}.image": [message]}


@given(st.binary(min_size=1, max_size=200))
@PATIENT
def test_data_uri_gives_its_bytes(content: bytes) -> None:
    image = read(body({"image": "data:image/png;base64," + base64.b64encode(content).decode()})).image
    assert wire.data_uri(image) == content
    assert wire.data_uri(image, max_bytes=len(content)) == content
    with pytest.raises(ImageError, match=f"{len(content)} bytes; the limit is {len(content) - 1}"):
        wire.data_uri(image, max_bytes=len(content) - 1)


def test_url_is_not_a_data_uri() -> None:
    assert wire.data_uri(IMAGE, max_bytes=1) is None


def test_invalid_base64_is_refused_on_decoding() -> None:
    with pytest.raises(ImageError, match="does not decode"):
        wire.data_uri("data:image/png;base64,Q")


def test_oversized_data_uri_is_not_decoded() -> None:
    with pytest.raises(ImageError, match="the limit is 2"):
        wire.data_uri("data:image/png;base64,????", max_bytes=2)


def test_stored_input_has_no_webhook_or_payload() -> None:
    payload = base64.b64encode(b"x" * 12345).decode()
    request = read(
        body({"image": f"data:image/png;base64,{payload}", "seed": 5}, webhookUrl="https://a.example/secret")
    )
    assert wire.stored_input(request) == {"image": "data:image/png;base64,<12345 bytes>", **DEFAULTS, "seed": 5}
    assert wire.stored_input(read(body())) == {"image": IMAGE, **DEFAULTS}


# --- refusals (4.4, D2, D7)

FACTOR = "Expected one of 1, 2, 4, 8"
UNIT = "Must be between 0 and 1"
SEED = f"Must be between 0 and {MAX_SEED}"


@pytest.mark.parametrize(
    ("name", "sent", "message"),
    [
        *(
            ("scale_factor", sent, FACTOR)
            for sent in (3, 0, -2, 16, "16", "16x", True, 2.5, "two", "x2", [2], {"a": 2}, 10**400, "٢", "2_")
        ),
        *(("creativity", sent, UNIT) for sent in (1.01, -0.01, "2", 1e308, "1e999", "-1e999", 10**400, -(10**400))),
        *(
            ("creativity", sent, "Expected a number")
            for sent in (
                *(
                    True,
                    False,
                    "high",
                    "٣",
                    "1_000",
                    "0x10",
                    "Infinity",
                    "-inf",
                    "NaN",
                    "1,5",
                    "0.5%",
                    "1 0",
                    "e1",
                    ".",
                ),
                *([], [0.5], {}, {"value": 1}, "1" * 65),
            )
        ),
        ("resemblance", 3.01, "Must be between 0 and 3"),
        ("dynamic", 0.5, "Must be between 1 and 50"),
        ("dynamic", 51, "Must be between 1 and 50"),
        ("sharpen", 11, "Must be between 0 and 10"),
        ("num_inference_steps", 0, "Must be between 1 and 100"),
        ("num_inference_steps", 101, "Must be between 1 and 100"),
        ("num_inference_steps", 18.5, "Expected an integer"),
        ("num_inference_steps", "18.5", "Expected an integer"),
        ("num_inference_steps", "many", "Expected an integer"),
        ("num_inference_steps", True, "Expected an integer"),
        ("seed", MAX_SEED + 1, SEED),
        ("seed", str(MAX_SEED + 1), SEED),
        ("seed", float(2**53), SEED),
        ("seed", 10**24, SEED),
        ("seed", 10**400, SEED),
        ("seed", -2, SEED),
        ("seed", 1.5, "Expected an integer"),
        ("seed", False, "Expected an integer"),
        ("output_format", "gif", "Expected one of png, jpg, webp"),
        ("output_format", 1, "Expected one of png, jpg, webp"),
        ("output_format", True, "Expected one of png, jpg, webp"),
        ("prompt", 5, "Expected a string"),
        ("prompt", ["a"], "Expected a string"),
        ("prompt", "x" * 2001, "Must be at most 2000 characters"),
        ("negative_prompt", "x" * 2001, "Must be at most 2000 characters"),
        ("prompt", "a\0b", "Must not contain the NUL character"),
        ("prompt", "a\ud800b", "Must be valid Unicode: it holds half of a surrogate pair"),
    ],
)
def test_wrong_value_is_reported_at_its_path(name: str, sent: object, message: str) -> None:
    assert problems(body({name: sent})) == {f"{PARAMS}.{name}": [message]}


def test_huge_number_is_out_of_range() -> None:
    raw = f'{{"model":"clarity-upscale","{PARAMS}":{{"image":"{IMAGE}","creativity":1e400,"seed":-1e400}}}}'
    assert problems(raw.encode()) == {f"{PARAMS}.creativity": [UNIT], f"{PARAMS}.seed": [SEED]}


def test_missing_params_image_or_object_is_reported() -> None:
    assert problems(body(None, **{PARAMS: ...})) == {PARAMS: ["Required"]}
    assert problems(body(None, **{PARAMS: None})) == {PARAMS: ["Required"]}
    assert problems(body(None, **{PARAMS: {}})) == {f"{PARAMS}.image": ["Required"]}
    assert problems(body(None, **{PARAMS: "{}"})) == {PARAMS: ["Expected an object"]}
    assert problems(body(None, **{PARAMS: [{"image": IMAGE}]})) == {PARAMS: ["Expected an object"]}


OFFERED = "Expected 'clarity-upscale' or 'faithful-upscale'"


@pytest.mark.parametrize(
    "name", ["topaz-image-upscale", "clarity", 5, True, ["clarity-upscale"], {}, "\ud800", "x" * 10**5]
)
def test_unknown_model_hides_unknown_keys(name: object) -> None:
    assert problems({"model": name, "topazImageUpscaleParams": {"image": IMAGE}}) == {"model": [OFFERED]}


@pytest.mark.parametrize("name", [..., None, ""])
def test_params_are_checked_without_model(name: object) -> None:
    assert problems(body({"image": "x", "creativity": 5}, model=name)) == {
        "model": ["Required"],
        f"{PARAMS}.image": [NOT_A_PICTURE],
        f"{PARAMS}.creativity": [UNIT],
    }


def test_empty_object_lacks_only_the_model() -> None:
    assert problems({}) == {"model": ["Required"]}


def test_mistyped_model_key_is_recognised() -> None:
    assert problems({"modle": "clarity-upscale"}) == {
        "model": ["Required"],
        "_root": ["Unrecognized key(s): 'modle'. Did you mean 'model'?"],
    }


def test_all_problems_are_reported_at_once() -> None:
    sent = body(
        {"image": "x", "scale_factor": 3, "creativty": 1, "seed": "a"},
        webhookUrl="x",
        webhookEvents=["completed", "x"],
        modell=1,
    )
    assert set(problems(sent)) == {
        *("_root", PARAMS, f"{PARAMS}.image", f"{PARAMS}.scale_factor", f"{PARAMS}.seed"),
        *("webhookUrl", "webhookEvents.1"),
    }


@pytest.mark.parametrize(
    ("sent", "details"),
    [
        (
            body({"creativty": 0.5}),
            {PARAMS: ["Unrecognized key(s): 'creativty'. Did you mean 'creativity'?"]},
        ),
        (body({"strength": 1}), {PARAMS: ["Unrecognized key(s): 'strength'."]}),
        (
            body({"Seed": 1, "upscalefactor": 2, "zz": 3}),
            {PARAMS: ["Unrecognized key(s): 'Seed', 'upscalefactor', 'zz'. Did you mean 'seed', 'scale_factor'?"]},
        ),
        (body({"creativity": 1, "creativty": 1}), {PARAMS: ["Unrecognized key(s): 'creativty'."]}),
        (
            body(webhookurl="https://a.example"),
            {"_root": ["Unrecognized key(s): 'webhookurl'. Did you mean 'webhookUrl'?"]},
        ),
        (
            body(scale_factor=2),
            {"_root": [f"Unrecognized key(s): 'scale_factor'. Did you mean '{PARAMS}.scale_factor'?"]},
        ),
        (
            {"model": "faithful-upscale", PARAMS: {"image": IMAGE}},
            {
                "faithfulUpscaleParams": ["Required"],
                "_root": [f"Unrecognized key(s): '{PARAMS}'. Did you mean 'faithfulUpscaleParams'?"],
            },
        ),
        (
            {
                "model": "faithful-upscale",
                "faithfulUpscaleParams": {"image": IMAGE, "prompt": "a"},
                "prompt": "b",
                PARAMS: 1,
            },
            {
                "faithfulUpscaleParams": ["Unrecognized key(s): 'prompt'."],
                "_root": [f"Unrecognized key(s): 'prompt', '{PARAMS}'."],
            },
        ),
    ],
)
def test_unknown_keys_get_suggestions(sent: object, details: object) -> None:
    assert problems(sent) == details


def test_unknown_keys_are_quoted_safely() -> None:
    many = {f"key\x00\ud800{index:03d}" + "z" * 10_000: index for index in range(500)}
    (message,) = problems(body(many))[PARAMS]
    assert message.endswith(" and 490 more.")
    assert len(message) < 1000
    assert message.isprintable()


def test_unknown_keys_can_be_ignored() -> None:
    assert read(body({"creativty": 1}, foo=2), ignore_unknown_keys=True) == read(body())
    assert problems(body({"creativity": 2}, foo=2), ignore_unknown_keys=True) == {f"{PARAMS}.creativity": [UNIT]}


# --- bytes and media types


@pytest.mark.parametrize(
    "content_type",
    [
        *("application/json", "application/json; charset=utf-8", "Application/JSON;charset=UTF-8", "text/json"),
        *("application/vnd.api+json", "application/problem+json; a=b", None, "", " "),
    ],
)
def test_json_or_undeclared_media_type_is_read(content_type: str | None) -> None:
    assert read(body(), content_type) == read(body())


@pytest.mark.parametrize(
    "content_type",
    [
        *("application/x-www-form-urlencoded", "text/plain;charset=UTF-8", "multipart/form-data; boundary=x"),
        *("application/jsonp", "text/html+json", "image/png", "json", "\x00\ud800"),
    ],
)
def test_other_media_type_is_refused(content_type: str) -> None:
    (message,) = problems(body(), content_type)["_root"]
    assert message.endswith("Send the header Content-Type: application/json.")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "Expected a JSON object, got an empty body"),
        (b" \n", "Expected a JSON object, got an empty body"),
        (b"\xef\xbb\xbf", "Expected a JSON object, got an empty body"),
        (b"[]", "Expected a JSON object"),
        (b"null", "Expected a JSON object"),
        (b'"text"', "Expected a JSON object"),
        (b"7", "Expected a JSON object"),
        (b"{", r"Malformed JSON: .* at line 1, column \d+"),
        (b"{'model': 1}", r"Malformed JSON: .* at line 1, column 2"),
        (b'{"model": 1} x', r"Malformed JSON: .*"),
        (b'{"model": "\x01"}', r"Malformed JSON: .*"),
        (b'{"model": NaN}', "Malformed JSON: NaN is not a JSON number"),
        (b'{"model": [-Infinity]}', "Malformed JSON: -Infinity is not a JSON number"),
        (b'{"model": 1, "model": 2}', "Duplicate key 'model'"),
        (b'{"a": {"b\\ud800": 1, "b\\ud800": 2}}', "Duplicate key 'b\N{REPLACEMENT CHARACTER}'"),
        (b'{"model": "\xff"}', r"The body is not UTF-8 \(byte 11\)"),
        ('{"model": 1}'.encode("utf-16"), r"The body is not UTF-8 .*"),
        (b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "The JSON body is nested too deeply"),
        (b'{"a":' * 50_000, "The JSON body is nested too deeply"),
        (b'{"a": [' + b"[]," * 60_000 + b"0]}", "Too many values in the JSON body"),
        (b'{"a": ' + b"1" * 5000 + b"}", "A number has more than 1000 digits"),
        (b'{"a": 0.' + b"1" * 5000 + b"}", "A number has more than 1000 digits"),
    ],
)
def test_non_object_body_is_a_root_problem(raw: bytes, message: str) -> None:
    details = problems(raw)
    assert list(details) == ["_root"]
    assert re.fullmatch(message, details["_root"][0])


def test_byte_order_mark_is_accepted() -> None:
    assert read(b"\xef\xbb\xbf" + json.dumps(body()).encode()) == read(body())


def test_25_megabyte_data_uri_is_read() -> None:
    content = bytes(range(256)) * 102_400
    image = read(body({"image": "data:image/png;base64," + base64.b64encode(content).decode()})).image
    assert wire.data_uri(image) == content


# --- properties


ODD_TEXT = st.one_of(
    st.text(st.characters(exclude_categories=[]), max_size=20),
    st.sampled_from(["\0", "\ud800", "1e400", "٣", "2x", "https://", "data:image/png;base64,", "http://[", "-1", "﷽"]),
)
NUMBERS = st.one_of(
    st.integers(), st.floats(allow_nan=False), st.sampled_from([10**400, -(10**400), 2**53, 1e308, 5e-324, -0.0])
)
ANY_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, ODD_TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(ODD_TEXT, inner, max_size=4)),
    max_leaves=12,
)
TOP_KEYS = ["model", "webhookUrl", "webhook_url", "webhookEvents", "webhook_events", "prompt", "negative_prompt"]
PARAM_KEYS = sorted({name for model in MODELS for param in model.params for name in (param.name, *param.aliases)})


def outcome(raw: bytes, **options: bool) -> dict[str, Any]:
    """What a request stores or what its refusal answers; anything else that `parse_upscale` does is a failure."""
    try:
        request = wire.parse_upscale(raw, JSON, **options)
    except InvalidRequest as refused:
        return wire.error_body(refused, request_id="r")
    assert isinstance(request.model.recipe(request.values, seed=1), Recipe)
    return wire.stored_input(request)


@st.composite
def submissions(draw: st.DrawFn) -> object:
    """Any JSON value, or one that comes close to a request."""

    def some(keys: list[str]) -> dict[str, object]:
        return {key: draw(ANY_JSON) for key in draw(st.lists(st.sampled_from(keys), unique=True, max_size=4))}

    if draw(st.booleans()):
        return draw(ANY_JSON)
    model = draw(st.sampled_from(MODELS))
    return {"model": model.id, model.params_key: {"image": IMAGE, **some(PARAM_KEYS)}, **some(TOP_KEYS)}


@given(sent=submissions(), ignore=st.booleans())
@settings(PATIENT, max_examples=300)
def test_any_json_is_read_or_refused(sent: object, ignore: bool) -> None:
    answer = outcome(json.dumps(sent).encode(), ignore_unknown_keys=ignore)
    assert "image" in answer or all(messages and all(messages) for messages in answer["details"].values())
    assert "\\u0000" not in json.dumps(answer)  # PostgreSQL stores it, any client decodes it
    json.dumps(answer, ensure_ascii=False, allow_nan=False).encode()


@given(st.binary(max_size=200))
@PATIENT
def test_random_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequest):
        wire.parse_upscale(raw, None)


SPELLED: dict[str, list[list[object]]] = {
    "scale_factor": [[2, "2", 2.0, "2x", None, ""], [4, "4", "4.0", "4X"], [8, " 8 "]],
    "creativity": [[0.35, "0.35", "3.5e-1", None, ""], [0, "0", -0.0], [1, "1.0", "1e0"]],
    "num_inference_steps": [[18, 18.0, "18", ""], [7, "7.0"]],
    "output_format": [["png", "PNG", None], ["jpg", "jpeg", "JPEG"]],
    "seed": [[None, -1, "-1", ""], [0, "0", -0.0], [1337, "1337.0"]],
    "prompt": [["masterpiece, best quality, highres", None, ""], ["moss"], ["Moss"], [" moss"]],
}
CHOICES = st.fixed_dictionaries(
    {name: st.integers(0, len(values) - 1) for name, values in SPELLED.items()}
    | {"url": st.sampled_from(["https://a.example/h", "https://b.example/h", None]), "events": st.integers(0, 1)}
)
EVENT_SPELLINGS: list[list[object]] = [["completed,failed", ["failed", "COMPLETED"], None], [["failed"], "Failed"]]


@st.composite
def spelled(draw: st.DrawFn, choices: Mapping[str, Any]) -> bytes:
    """One of the many ways to write the request that `choices` stands for."""
    params: dict[str, object] = {"image": IMAGE}
    for name, values in SPELLED.items():
        params[draw(st.sampled_from([name, CAMEL.get(name, name)]))] = draw(st.sampled_from(values[choices[name]]))
    top: dict[str, object] = {
        "model": draw(st.sampled_from(["clarity-upscale", "clarity-upscaler"])),
        draw(st.sampled_from([PARAMS, "clarity_upscale_params"])): dict(draw(st.permutations(list(params.items())))),
        draw(st.sampled_from(["webhookUrl", "webhook_url"])): choices["url"],
        "webhookEvents": draw(st.sampled_from(EVENT_SPELLINGS[choices["events"]])),
    }
    return json.dumps(dict(draw(st.permutations(list(top.items()))))).encode()


def meaning(choices: Mapping[str, Any]) -> dict[str, Any]:
    return {**choices, "events": choices["events"] if choices["url"] else None}


@given(st.data(), CHOICES, CHOICES)
@settings(PATIENT, max_examples=150)
def test_equal_requests_share_a_fingerprint(data: st.DataObject, one: dict[str, Any], other: dict[str, Any]) -> None:
    first, again, second = (wire.parse_upscale(data.draw(spelled(choices)), JSON) for choices in (one, one, other))
    assert first == again
    assert (first.fingerprint == second.fingerprint) == (meaning(one) == meaning(other))


def test_fingerprint_covers_image_and_model() -> None:
    faithful = {"model": "faithful-upscale", "faithfulUpscaleParams": {"image": IMAGE}}
    requests = [body(), body({"image": IMAGE + "?2"}), faithful]
    assert len({read(sent).fingerprint for sent in requests}) == 3


def test_fingerprint_is_stable() -> None:
    """A change here answers 409 for a day to clients that retry across an upgrade: change it only on purpose."""
    sent = body({"scale_factor": "4x", "seed": 1337}, webhookUrl="https://client.example/hook")
    assert read(sent).fingerprint.hex() == "890a8976182dd86fe0a68c3c1eba5cd862a87afc41e810a7b57479690f506bb9"


# --- the seed pages' snippets

SEEDS = ROOT.parent / "shared" / "seeds"


@pytest.mark.skipif(not SEEDS.is_dir(), reason="the published pages are not beside the repository")
def test_published_snippets_are_accepted() -> None:
    pages = sorted(SEEDS.glob("*.txt"))
    assert len(pages) == 2
    expected = read(
        body({"prompt": "Optional — describe the kind of detail to add", "scale_factor": 2, "creativity": 0.35})
    )
    for page in pages:
        text = page.read_text(encoding="utf-8")
        curl = re.search(r"-d '(\{.*?\})'", text, re.DOTALL)
        python = re.search(r"json=(\{.*?\n    \}),\n\)", text, re.DOTALL)
        script = re.search(r"JSON\.stringify\((\{.*?\})\),\n", text, re.DOTALL)
        assert curl
        assert python
        assert script
        assert read(curl[1].encode()) == expected
        assert read(ast.literal_eval(python[1])) == expected
        assert read(script[1].encode()) == expected


# --- another model is one catalog entry


def test_new_model_needs_only_a_catalog_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    third = CatalogModel(
        id="restore",
        label="Restore",
        description="",
        provider="hiresfix",
        params_key="restoreParams",
        price=flat(2),
        preset=Recipe(),
        params=(
            CLARITY.param("image"),
            Param(name="film_grain", kind="number", help="", maximum=1, default=0.25),
            Param(name="passes", kind="integer", help="", minimum=1, required=True),
            Param(name="Look", kind="string", help="", choices=("Warm", "Cold"), default="Cold", common=True),
        ),
    )
    monkeypatch.setattr(catalog, "MODELS", (*MODELS, third))
    request = read(
        {"model": "Restore", "restoreParams": {"image": IMAGE, "filmGrain": "-3", "passes": "2"}, "Look": "wARM"}
    )
    assert request.values == {"film_grain": -3.0, "passes": 2, "Look": "Warm"}
    assert problems({"model": "restore", "restoreParams": {"image": IMAGE, "film_grain": 2}, "creativity": 1}) == {
        "restoreParams.film_grain": ["Must be at most 1"],
        "restoreParams.passes": ["Required"],
        "_root": ["Unrecognized key(s): 'creativity'."],
    }
    assert problems({"model": "restore", PARAMS: {}})["_root"] == [
        f"Unrecognized key(s): '{PARAMS}'. Did you mean 'restoreParams'?"
    ]
    assert problems({"model": "x"})["model"] == ["Expected 'clarity-upscale' or 'faithful-upscale' or 'restore'"]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.id)
def test_schema_agrees_with_parser(model: CatalogModel) -> None:
    schema = json.loads(json.dumps(wire.json_schema(model)))
    assert schema["required"] == ["image"]
    assert schema["additionalProperties"] is False
    assert list(schema["properties"]) == [param.name for param in model.params]
    plain = read({"model": model.id, model.params_key: {"image": IMAGE}}).values
    for name, rule in schema["properties"].items():
        assert rule["description"]
        assert rule.get("default") == plain.get(name)

        def details(value: object, name: str = name) -> object:
            sent = {"model": model.id, model.params_key: {"image": IMAGE, name: value}}
            try:
                read(sent)
            except InvalidRequest as refused:
                return refused.details
            return None

        for accepted in (*rule.get("enum", ()), *(rule[bound] for bound in ("minimum", "maximum") if bound in rule)):
            assert details(accepted) is None
        if "minimum" in rule:
            assert details(rule["minimum"] - 2)
            assert details(rule["maximum"] + 1)
        if "maxLength" in rule:
            assert details("x" * rule["maxLength"]) is None
            assert details("x" * (rule["maxLength"] + 1))


def test_schema_matches_contract_table() -> None:
    properties = wire.json_schema(CLARITY)["properties"]
    assert {name: rule.get("default") for name, rule in properties.items()} == {"image": None, **DEFAULTS, "seed": None}
    assert properties["scale_factor"]["enum"] == [1, 2, 4, 8]
    assert properties["image"]["format"] == "uri"
    assert (properties["seed"]["minimum"], properties["seed"]["maximum"]) == (0, MAX_SEED)


# --- headers


def test_idempotency_key_has_255_characters_at_most() -> None:
    assert wire.idempotency_key(None) is None
    assert wire.idempotency_key("") is None
    assert wire.idempotency_key("k") == "k"
    assert wire.idempotency_key("k" * 255) == "k" * 255
    with pytest.raises(InvalidRequest) as refused:
        wire.idempotency_key("k" * 256)
    assert refused.value.details == {"Idempotency-Key": ["Must be at most 255 characters"]}


def test_wire_imports_no_framework() -> None:
    heavy = "('fastapi', 'starlette', 'pydantic', 'numpy', 'torch', 'PIL', 'httpx', 'psycopg')"
    code = f"import sys, hiresfix.wire, hiresfix.webhook_signing; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
