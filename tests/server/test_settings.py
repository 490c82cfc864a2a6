"""Settings: what an operator writes becomes values, or a message that names the variable and the way out."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from structlog.testing import capture_logs

from hiresfix.errors import ConfigurationError, FetchError
from hiresfix.models.catalog import CLARITY, FAITHFUL
from hiresfix.server import guarded_http, uploads
from hiresfix.server.settings import load_settings, warn_of_former_names, with_current_names


def test_prices_override_the_catalog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIRESFIX_PRICES", "clarity-upscaler = 5 , faithful-upscale=0.5/MP")
    settings = load_settings()
    assert settings.price(CLARITY).of(9000, 9000) == 5
    assert settings.price(FAITHFUL).of(3000, 1000) == 2
    monkeypatch.delenv("HIRESFIX_PRICES")
    assert load_settings().price(CLARITY) is CLARITY.price


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIRESFIX_TRUSTED_PROXIES", "10.1.2.3/8, ::1,")
    monkeypatch.setenv("HIRESFIX_CORS_ORIGINS", "https://a.example,http://localhost:5173, http://[::1]:80")
    settings = load_settings()
    assert settings.trusted_proxies == (ip_network("10.0.0.0/8"), ip_network("::1"))
    assert settings.cors_origins == ("https://a.example", "http://localhost:5173", "http://[::1]:80")


def test_outbound_ports_are_configurable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIRESFIX_OUTBOUND_PORTS", "443, 8443")
    policy = uploads.http_policy(load_settings())
    assert guarded_http.check_url("https://pictures.example:8443/", policy).port == 8443
    with pytest.raises(FetchError, match="Use port 443 or 8443"):
        guarded_http.check_url("http://pictures.example/", policy)


@pytest.mark.parametrize(
    ("variable", "value", "hint"),
    [
        ("HIRESFIX_PRICES", "topaz=3", "clarity-upscale=3"),
        ("HIRESFIX_PRICES", "clarity-upscale=1.5", "whole credits"),
        ("HIRESFIX_TRUSTED_PROXIES", "proxy.example", "10.0.0.0/8"),
        ("HIRESFIX_CORS_ORIGINS", "*", "https://studio.example.com"),
        ("HIRESFIX_CORS_ORIGINS", "https://a.example/", "without a path"),
        ("HIRESFIX_RATE_GENERAL", "0", "greater than 0"),
        ("HIRESFIX_OUTBOUND_PORTS", "443,70000", "80,443,8443"),
        ("HIRESFIX_OUTBOUND_PORTS", ",", "80,443,8443"),
        ("HIRESFIX_RESULT_URLS", "signed", "set HIRESFIX_STORAGE_URL"),
        ("HIRESFIX_RESULT_URL_SECONDS", "604801", "less than or equal to 604800"),
        ("HIRESFIX_SWEEP_SECONDS", "0", "greater than 0"),
        ("HIRESFIX_STORAGE_PUBLIC_ENDPOINT", "images.example.com", "https://images.example.com"),
    ],
)
def test_wrong_setting_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, hint: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=variable) as caught:
        load_settings()
    assert hint in caught.value.message


def test_wrong_redis_url_hides_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIRESFIX_RATE_LIMIT_URL", "memcached://:hush@cache")
    with pytest.raises(ConfigurationError, match="HIRESFIX_RATE_LIMIT_URL") as caught:
        load_settings()
    assert "hush" not in caught.value.message


FORMER = [
    (
        "HIRESFIX_NEEDS",
        "HIRESFIX_REQUIRED_TAGS",
        "required_tags",
        "clarity-upscale=cuda",
        {"clarity-upscale": ("cuda",)},
    ),
    ("HIRESFIX_SIGNIN_MINUTES", "HIRESFIX_LOGIN_LINK_MINUTES", "login_link_minutes", "3", 3.0),
    ("HIRESFIX_SWEEP_SECONDS", "HIRESFIX_MAINTENANCE_SECONDS", "maintenance_seconds", "7", 7.0),
    ("HIRESFIX_UPLOAD_HOURS", "HIRESFIX_UPLOAD_RETENTION_HOURS", "upload_retention_hours", "9", 9.0),
    ("HIRESFIX_BODY_SECONDS", "HIRESFIX_BODY_TIMEOUT_SECONDS", "body_timeout_seconds", "11", 11.0),
]


@pytest.mark.parametrize(("former", "current", "field", "text", "value"), FORMER)
def test_former_names_of_variables_work(
    monkeypatch: pytest.MonkeyPatch, former: str, current: str, field: str, text: str, value: object
) -> None:
    monkeypatch.delenv(current, raising=False)
    monkeypatch.setenv(former, text)
    assert getattr(load_settings(), field) == value


def test_current_name_wins_over_former(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIRESFIX_UPLOAD_HOURS", "9")
    monkeypatch.setenv("HIRESFIX_UPLOAD_RETENTION_HOURS", "4")
    assert load_settings().upload_retention_hours == 4


def test_former_names_are_logged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with capture_logs() as logs:
        warn_of_former_names()
    assert logs == []
    monkeypatch.setenv("HIRESFIX_UPLOAD_HOURS", "9")
    monkeypatch.setenv("HIRESFIX_BODY_SECONDS", "8")
    with capture_logs() as logs:
        warn_of_former_names()
    assert [(line["event"], line["log_level"]) for line in logs] == [("settings.renamed", "warning")]
    assert logs[0]["renamed"] == {
        "HIRESFIX_UPLOAD_HOURS": "HIRESFIX_UPLOAD_RETENTION_HOURS",
        "HIRESFIX_BODY_SECONDS": "HIRESFIX_BODY_TIMEOUT_SECONDS",
    }
    # Children of a supervisor get the current names, and so do not warn again.
    assert with_current_names({"HIRESFIX_UPLOAD_HOURS": "9", "PATH": "x"}) == {
        "HIRESFIX_UPLOAD_RETENTION_HOURS": "9",
        "PATH": "x",
    }
