"""Prices: dry runs, charges, and monthly budgets of keys."""

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


def start_with_prices(start_api: Callable[..., Api], **prices: str) -> Api:
    return start_api(prices={name.replace("_", "-"): pricing.parse(text) for name, text in prices.items()})


def test_dry_run_previews_without_side_effects(api: Api, photo: str) -> None:
    for _ in range(2):
        response = preview(api, {"image": photo, "scale_factor": 4})
        assert response.status_code == 200
        assert response.json() == {
            "dryRun": True,
            "model": "clarity-upscale",
            "creditCost": 3,
            "creditsAvailable": 100,
            "budgetAvailable": None,
            "sufficient": True,
            "input": {"width": 24, "height": 17},
            "output": {"width": 96, "height": 68, "megapixels": 0.01},
            "estimatedSeconds": None,  # nothing has been measured yet
        }
    api.assert_untouched()
    # The Idempotency-Key of a dry run is free for the real request.
    assert api.submit({"image": photo}, headers={"Idempotency-Key": "ignored by a dry run"}).status_code == 202


def test_dry_run_reports_missing_credits(api: Api, photo: str) -> None:
    api.do("insert into ledger (team_id, kind, amount, counterparty, actor, reason)"
           " select id, 'adjust', -98, 'adjustments', 'test', 'test' from teams")  # fmt: skip
    api.do("update teams set credits = 2")
    body = preview(api, {"image": photo}).json()
    assert (body["creditCost"], body["creditsAvailable"], body["sufficient"]) == (3, 2, False)


def test_dry_run_validates_the_request(api: Api, site: Site) -> None:
    assert set(preview(api, {"scale_factor": 3}).json()["details"]) == {
        "clarityUpscaleParams.image",
        "clarityUpscaleParams.scale_factor",
    }
    dead = preview(api, {"image": site.url + "/missing.png"})
    assert (dead.status_code, list(dead.json()["details"])) == (400, ["clarityUpscaleParams.image"])


def test_invalid_dry_run_flag_is_400(api: Api, photo: str) -> None:
    statuses = {flag: preview(api, {"image": photo}, flag=flag) for flag in ("TRUE", "1", "", "yes", "false")}
    assert [response.status_code for response in statuses.values()] == [200, 200, 400, 400, 202]
    assert statuses["yes"].json()["details"] == {"dryRun": ["Expected true or false"]}


@pytest.mark.parametrize(
    ("query", "status"),
    [("dry_run=true", 200), ("dryrun=1", 200), ("DryRun=True", 200), ("dryRun=true&dryRun=false", 400)],
)
def test_dry_run_spelling_variants_are_not_charged(api: Api, photo: str, query: str, status: int) -> None:
    body = {"model": "clarity-upscale", "clarityUpscaleParams": {"image": photo}}
    with api.client() as client:
        assert client.post(f"{UPSCALE}?{query}", json=body).status_code == status
    assert (api.balance, api.jobs) == (100, 0)


def test_price_by_size_is_consistent(start_api: Callable[..., Api], site: Site) -> None:
    api = start_with_prices(start_api, clarity_upscale="40/MP")
    image = {"image": site.add("/p.png", png(500, 300)), "scale_factor": 2}  # 0.6 megapixels out
    assert preview(api, image).json()["creditCost"] == 24
    job = api.submit(image).json()["jobId"]
    with api.client() as client:
        assert client.get(f"/v2/jobs/{job}").json()["creditCost"] == 24
    assert api.balance == 76
    refused = api.submit({**image, "scale_factor": 4})
    assert (refused.status_code, refused.json()["creditsRequired"], refused.json()["creditsAvailable"]) == (402, 96, 76)
    assert (api.balance, api.jobs, len(api.files)) == (76, 1, 1)


def test_free_model_costs_nothing(start_api: Callable[..., Api], photo: str) -> None:
    api = start_with_prices(start_api, clarity_upscale="0")
    assert api.submit({"image": photo}).status_code == 202
    assert api.balance == 100


# Monthly budgets ----------------------------------------------------------------------------------------------------


def test_over_budget_is_403_with_numbers(api: Api, photo: str) -> None:
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


def test_racing_requests_stay_within_budget(start_api: Callable[..., Api], site: Site) -> None:
    # A price by size, so that the check before the probe lets all of them through and the transaction decides.
    api = start_with_prices(start_api, clarity_upscale="40/MP")
    api.do("update api_keys set monthly_budget = 10")
    image = {"image": site.add("/p.png", png(250, 200))}  # 0.2 megapixels out: 8 credits
    with ThreadPoolExecutor(8) as pool:
        statuses = sorted(pool.map(lambda _: api.submit(image).status_code, range(8)))
    assert statuses == [202, *[403] * 7]
    assert (api.balance, api.jobs, len(api.files)) == (92, 1, 1)


def test_budget_counts_this_month_and_key_only(api: Api, photo: str) -> None:
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


def test_refund_counts_in_month_of_charge(api: Api, photo: str) -> None:
    api.do("update api_keys set monthly_budget = 3")
    job = api.submit({"image": photo}).json()["jobId"]
    api.do("insert into ledger (team_id, job_id, kind, amount, counterparty, actor, reason)"
           " select team_id, id, 'refund', 3, 'revenue', 'test', 'test' from jobs where id = %s", job)  # fmt: skip
    api.do("update teams set credits = 100")
    assert preview(api, {"image": photo}).json()["budgetAvailable"] == 3
    api.do("update jobs set created_at = created_at - interval '32 days'")
    assert preview(api, {"image": photo}).json()["budgetAvailable"] == 3  # not six: the refund belongs to another month
