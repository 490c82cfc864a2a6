"""What a job costs, asked beforehand and charged afterwards, and what a key may spend a month."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from hiresfix.models import pricing
from tests.conftest import Site, png
from tests.server.conftest import Api

UPSCALE = "/v2/images/upscale"


def preview(api: Api, params: dict[str, Any], *, flag: str = "true", **more: Any) -> httpx.Response:
    body = {"model": "clarity-upscale", "clarityUpscaleParams": params, **more}
    with api.client(**{"Idempotency-Key": "ignored by a dry run"}) as client:
        return client.post(UPSCALE, json=body, params={"dryRun": flag})


def priced(start_api: Callable[..., Api], **prices: str) -> Api:
    return start_api(prices={name.replace("_", "-"): pricing.parse(text) for name, text in prices.items()})


def test_a_dry_run_tells_what_would_be_done_and_does_nothing(api: Api, photo: str) -> None:
    for _ in range(2):
        answer = preview(api, {"image": photo, "scale_factor": 4})
        assert answer.status_code == 200
        assert answer.json() == {
            "dryRun": True,
            "model": "clarity-upscale",
            "creditCost": 3,
            "creditsAvailable": 100,
            "budgetAvailable": None,
            "sufficient": True,
            "input": {"width": 24, "height": 17},
            "output": {"width": 96, "height": 68, "megapixels": 0.01},
            "estimatedSeconds": None,  # nothing was measured here yet
        }
    api.assert_untouched()
    # The key it was sent with is free for the real request.
    assert api.submit({"image": photo}, headers={"Idempotency-Key": "ignored by a dry run"}).status_code == 202


def test_a_dry_run_without_enough_credits_says_so_and_is_no_error(api: Api, photo: str) -> None:
    api.do("insert into ledger (team_id, kind, amount, counterparty, actor, reason)"
           " select id, 'adjust', -98, 'adjustments', 'test', 'test' from teams")  # fmt: skip
    api.do("update teams set credits = 2")
    body = preview(api, {"image": photo}).json()
    assert (body["creditCost"], body["creditsAvailable"], body["sufficient"]) == (3, 2, False)


def test_a_dry_run_finds_what_the_request_would_be_refused_for(api: Api, site: Site) -> None:
    assert set(preview(api, {"scale_factor": 3}).json()["details"]) == {
        "clarityUpscaleParams.image",
        "clarityUpscaleParams.scale_factor",
    }
    dead = preview(api, {"image": site.url + "/missing.png"})
    assert (dead.status_code, list(dead.json()["details"])) == (400, ["clarityUpscaleParams.image"])


def test_an_unclear_flag_is_refused_rather_than_charged(api: Api, photo: str) -> None:
    statuses = {flag: preview(api, {"image": photo}, flag=flag) for flag in ("TRUE", "1", "", "yes", "false")}
    assert [answer.status_code for answer in statuses.values()] == [200, 200, 400, 400, 202]
    assert statuses["yes"].json()["details"] == {"dryRun": ["Expected true or false"]}


@pytest.mark.parametrize(
    ("query", "status"),
    [("dry_run=true", 200), ("dryrun=1", 200), ("DryRun=True", 200), ("dryRun=true&dryRun=false", 400)],
)
def test_whoever_asked_for_a_dry_run_in_other_words_is_not_charged(
    api: Api, photo: str, query: str, status: int
) -> None:
    body = {"model": "clarity-upscale", "clarityUpscaleParams": {"image": photo}}
    with api.client() as client:
        assert client.post(f"{UPSCALE}?{query}", json=body).status_code == status
    assert (api.balance, api.jobs) == (100, 0)


def test_a_price_by_size_is_the_same_in_preview_charge_and_402(start_api: Callable[..., Api], site: Site) -> None:
    api = priced(start_api, clarity_upscale="40/MP")
    picture = {"image": site.add("/p.png", png(500, 300)), "scale_factor": 2}  # 0.6 megapixels out
    assert preview(api, picture).json()["creditCost"] == 24
    job = api.submit(picture).json()["jobId"]
    with api.client() as client:
        assert client.get(f"/v2/jobs/{job}").json()["creditCost"] == 24
    assert api.balance == 76
    refused = api.submit({**picture, "scale_factor": 4})
    assert (refused.status_code, refused.json()["creditsRequired"], refused.json()["creditsAvailable"]) == (402, 96, 76)
    assert (api.balance, api.jobs, len(api.files)) == (76, 1, 1)


def test_a_model_may_be_free(start_api: Callable[..., Api], photo: str) -> None:
    api = priced(start_api, clarity_upscale="0")
    assert api.submit({"image": photo}).status_code == 202
    assert api.balance == 100


# Monthly budgets ----------------------------------------------------------------------------------------------------


def test_over_its_budget_a_key_gets_403_with_the_numbers_and_nothing_happens(api: Api, photo: str) -> None:
    api.do("update api_keys set monthly_budget = 7")
    assert [api.submit({"image": photo}).status_code for _ in range(2)] == [202, 202]
    assert preview(api, {"image": photo}).json()["budgetAvailable"] == 1
    assert preview(api, {"image": photo}).json()["sufficient"] is False
    refused = api.submit({"image": photo})
    assert refused.status_code == 403
    assert refused.json()["error"] == "Monthly budget of this API key exceeded"
    assert {key: refused.json()[key] for key in ("code", "creditsRequired", "monthlyBudget", "monthlySpent")} == {
        "code": "over_budget",
        "creditsRequired": 3,
        "monthlyBudget": 7,
        "monthlySpent": 6,
    }
    assert (api.balance, api.jobs, len(api.files)) == (94, 2, 2)


def test_racing_requests_never_spend_more_than_the_budget(start_api: Callable[..., Api], site: Site) -> None:
    # By size, so that the look before the probe lets all of them through and the transaction has to decide.
    api = priced(start_api, clarity_upscale="40/MP")
    api.do("update api_keys set monthly_budget = 10")
    picture = {"image": site.add("/p.png", png(250, 200))}  # 0.2 megapixels out: 8 credits
    with ThreadPoolExecutor(8) as pool:
        statuses = sorted(pool.map(lambda _: api.submit(picture).status_code, range(8)))
    assert statuses == [202, *[403] * 7]
    assert (api.balance, api.jobs, len(api.files)) == (92, 1, 1)


def test_what_was_spent_in_another_month_or_with_another_key_does_not_count(api: Api, photo: str) -> None:
    api.do("update api_keys set monthly_budget = 3")
    api.submit({"image": photo})
    assert api.submit({"image": photo}).status_code == 403
    last_second = "date_trunc('month', now(), 'UTC') - interval '1 second'"
    api.do(f"update jobs set created_at = {last_second}")
    assert api.submit({"image": photo}).status_code == 202
    api.do("update jobs set created_at = date_trunc('month', now(), 'UTC')")
    assert api.submit({"image": photo}).status_code == 403
    api.do("update jobs set key_id = null")
    assert api.submit({"image": photo}).status_code == 202


def test_a_refund_gives_back_to_the_month_of_its_charge(api: Api, photo: str) -> None:
    api.do("update api_keys set monthly_budget = 3")
    job = api.submit({"image": photo}).json()["jobId"]
    api.do("insert into ledger (team_id, job_id, kind, amount, counterparty, actor, reason)"
           " select team_id, id, 'refund', 3, 'revenue', 'test', 'test' from jobs where id = %s", job)  # fmt: skip
    api.do("update teams set credits = 100")
    assert preview(api, {"image": photo}).json()["budgetAvailable"] == 3
    api.do("update jobs set created_at = created_at - interval '32 days'")
    assert preview(api, {"image": photo}).json()["budgetAvailable"] == 3  # and not six: it is not this month's refund
