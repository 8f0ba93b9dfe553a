"""The recipes in deploy/ say what the code understands."""

from pathlib import Path

import pytest

from survey.config import load_config

DEPLOY = Path(__file__).parents[1] / "deploy"


def test_slurm_settings_are_settings():
    cluster = load_config(DEPLOY / "slurm" / "field.toml").cluster
    assert cluster.workers == 64
    assert cluster.slurm.workers_per_job == 16


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
