"""The recipes in deploy/ say what the code understands."""

import re
import tomllib
from pathlib import Path

import pytest

from survey.config import load_config

DEPLOY = Path(__file__).parents[1] / "deploy"


def test_slurm_settings_are_settings():
    cluster = load_config(DEPLOY / "slurm" / "field.toml").cluster
    assert cluster.workers == 64
    assert cluster.slurm.workers_per_job == 16


def test_kubernetes_takes_the_manifests():
    """Every resource against the schema of the release that the package knows, unknown properties refused."""
    validate = pytest.importorskip(
        "kubernetes_validate", reason="needs kubernetes-validate, of the extra `dev`"
    )
    yaml = pytest.importorskip("yaml")
    found = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "survey.yaml").read_text()))
    for resource in found:
        validate.validate(resource, "1.33", strict=True)
    found[-1]["spec"]["template"]["spec"]["containers"][0]["memory"] = "3Gi"
    with pytest.raises(validate.ValidationError):
        validate.validate(found[-1], "1.33", strict=True)


def test_kubernetes_manifests_talk_tls_only_and_run_without_root():
    yaml = pytest.importorskip("yaml")
    found = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "survey.yaml").read_text()))
    assert [d["kind"] for d in found] == [
        "PersistentVolumeClaim",
        "Service",
        "NetworkPolicy",
        "Deployment",
        "Deployment",
    ]
    for deployment in found[-2:]:
        pod = deployment["spec"]["template"]
        assert pod["metadata"]["labels"] == deployment["spec"]["selector"]["matchLabels"]
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        (container,) = pod["spec"]["containers"]
        assert {a.split("=")[0] for a in container["args"]} >= {"--tls-ca-file", "--tls-cert", "--tls-key"}
        mounted = {m["name"] for m in container["volumeMounts"]}
        assert mounted == {v["name"] for v in pod["spec"]["volumes"]}
    assert "tls://survey-scheduler:8786" in found[-1]["spec"]["template"]["spec"]["containers"][0]["args"]


def test_every_requirement_is_pinned_plainly():
    """What `make` and the image install; one of its own extra that no one here installs need not be."""
    root = DEPLOY.parent
    lines = (root / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("# A set of versions")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(r for name in ("dev", "roman", "notebooks") for r in extras[name])]
    pinned = {pin.split("==")[0].lower().replace("_", "-") for pin in pins}
    names = {re.match(r"[\w.-]+", r)[0].lower().replace("_", "-") for r in wanted}
    assert names <= pinned
