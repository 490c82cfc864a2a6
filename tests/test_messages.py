"""Messages: English sentences that keep their reason and parameters."""

from __future__ import annotations

import copy
import json
import pickle

import pytest

from hiresfix import errors, messages


def test_message_is_a_string_with_params() -> None:
    message = messages.IMAGE_DAMAGED(kind="PNG")
    assert message == "The PNG file is damaged or incomplete. Save or download it again and retry."
    assert (message.reason, message.params) == ("image_damaged", {"kind": "PNG"})
    assert json.loads(json.dumps([message])) == [message]


def test_copies_keep_reason_and_params() -> None:
    message = messages.URL_STATUS(status=404)
    for twin in (copy.deepcopy(message), pickle.loads(pickle.dumps(message))):
        assert (twin, twin.reason, twin.params) == (message, "url_status", {"status": 404})


@pytest.mark.parametrize("params", [{}, {"kind": "PNG", "size": 3}, {"format": "PNG"}])
def test_wrong_params_are_an_error(params: dict[str, str | int]) -> None:
    with pytest.raises(ValueError, match="image_damaged takes"):
        messages.IMAGE_DAMAGED(**params)


def test_errors_have_reason_and_params_of_their_message() -> None:
    error = errors.ImageError(messages.IMAGE_DAMAGED(kind="PNG"))
    assert (error.reason, error.params) == ("image_damaged", {"kind": "PNG"})
    assert (errors.NotFound("Job not found").reason, errors.NotFound("Job not found").params) == (None, {})
    assert errors.PictureError is errors.ImageError


@pytest.mark.parametrize(("value", "shown"), [(64.0, "64"), (0.25, "0.25"), (25, "25"), (1 / 3, "0.333333")])
def test_plain_number_drops_needless_digits(value: float, shown: str) -> None:
    assert str(messages.plain_number(value)) == shown
