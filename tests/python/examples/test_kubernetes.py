"""Tests that the manifests of examples/kubernetes match Kubernetes' schemas and each other."""

from __future__ import annotations

import copy
import re
import warnings
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from helpers.paths import ROOT

DIRECTORY = ROOT / "examples" / "kubernetes"
VERSIONS = ("1.30", kubernetes_validate.latest_version())
CUSTOM = {"RayService"}  # not a Kubernetes kind; its parts are checked


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


SERVE = {document["kind"]: document for document in documents(DIRECTORY / "hybrid-rt-serve.yaml")}
RAY = documents(DIRECTORY / "ray-service.yaml")[0]
POD = SERVE["Deployment"]["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
ALL = [
    pytest.param(document, id=f"{path.name}-{document['kind']}")
    for path in sorted(DIRECTORY.glob("*.yaml"))
    for document in documents(path)
    if document["kind"] not in CUSTOM
]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("document", ALL)
def test_a_manifest_fits_kubernetes_schema(document: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(document, version, strict=True)


def test_the_schema_sees_a_mistake() -> None:
    wrong = copy.deepcopy(SERVE["Deployment"])
    wrong["spec"]["template"]["spec"]["containers"][0]["readinessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readinessProb"):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def arguments() -> dict[str, str]:
    return dict(argument.removeprefix("--").split("=") for argument in CONTAINER["args"] if argument.startswith("--"))


def test_the_arguments_are_the_program_s() -> None:
    known = set(re.findall(r'"--([a-z-]+)"', (ROOT / "cpp" / "apps" / "serve" / "main.cpp").read_text()))
    assert {"host", "port"} <= set(arguments()) <= known


def test_the_cpus_are_those_of_the_workers() -> None:
    wanted = int(arguments()["workers"]) * int(arguments()["threads"])
    assert CONTAINER["resources"]["requests"]["cpu"] == str(wanted)


def test_a_pod_has_the_time_to_drain() -> None:
    drained = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"] + int(arguments()["drain-seconds"])
    assert POD["terminationGracePeriodSeconds"] > drained


def test_the_probes_ask_what_the_service_answers() -> None:
    (port,) = CONTAINER["ports"]
    assert str(port["containerPort"]) == arguments()["port"]
    for probe, path in (("startupProbe", "/readyz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        assert CONTAINER[probe]["httpGet"] == {"path": path, "port": port["name"]}
        assert f'"{path}"' in (ROOT / "cpp" / "apps" / "serve" / "openapi.json").read_text()
    assert SERVE["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]


def test_names_and_labels_fit_together() -> None:
    labels = SERVE["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert SERVE["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert SERVE["Service"]["spec"]["selector"] == labels
    assert SERVE["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    target = SERVE["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", SERVE["Deployment"]["metadata"]["name"])
    claims = {v["persistentVolumeClaim"]["claimName"] for v in POD["volumes"] if "persistentVolumeClaim" in v}
    assert claims == {SERVE["PersistentVolumeClaim"]["metadata"]["name"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in POD["volumes"]}
    assert arguments()["token-file"].startswith(mounts["token"] + "/")
    (program,) = CONTAINER["command"]
    assert mounts["models"] == program.removesuffix("/serve") + "/models"  # as in a package
    assert (
        f"COPY --from=checked {program.removesuffix('/serve')} "
        in (ROOT / "examples" / "docker" / "Dockerfile").read_text()
    )


def test_at_most_one_pod_is_taken_away() -> None:
    least = SERVE["HorizontalPodAutoscaler"]["spec"]["minReplicas"]
    assert least > SERVE["PodDisruptionBudget"]["spec"]["maxUnavailable"]


def test_the_scaling_metric_is_the_service_s() -> None:
    metrics = [m["pods"]["metric"]["name"] for m in SERVE["HorizontalPodAutoscaler"]["spec"]["metrics"] if "pods" in m]
    source = (ROOT / "cpp" / "apps" / "serve" / "metrics.cpp").read_text()
    assert metrics
    assert all(name in source for name in metrics)


# Ray


def ray_templates() -> list[dict[str, Any]]:
    cluster = RAY["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_pods_of_the_ray_service_fit_kubernetes_schema(version: str) -> None:
    assert (RAY["apiVersion"], RAY["kind"]) == ("ray.io/v1", "RayService")
    for template in ray_templates():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": template["spec"]}
        kubernetes_validate.validate(pod, version, strict=True)


@pytest.mark.slow
def test_the_serve_config_is_one_that_ray_and_the_application_take() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from Ray's use of pydantic
        from ray.serve.schema import ServeDeploySchema

        from examples.ray_serve.detector_app import Options

        config = ServeDeploySchema.model_validate(yaml.safe_load(RAY["spec"]["serveConfigV2"]))
    (application,) = config.applications
    assert application.import_path == "examples.ray_serve.detector_app:app"
    options = Options.model_validate(application.args)
    worker = RAY["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    cpus = int(worker["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"])
    assert options.max_replicas * options.threads <= cpus * worker["maxReplicas"]
    assert options.min_replicas * options.threads <= cpus * worker["minReplicas"]
    assert worker["template"]["spec"]["terminationGracePeriodSeconds"] > options.drain_s
