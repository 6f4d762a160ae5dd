"""jobs/kubernetes/serving, compared with the schemas of Kubernetes and with itself: no cluster runs it.

`tests/serving/test_swap.py` starts a real server with the options of the Deployment.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from genrec_batch.cli.app import app
from genrec_batch.serving.options import RepositoryConfig
from tests.docs.test_commands import parsed

yaml = pytest.importorskip("yaml")
kubernetes_validate = pytest.importorskip("kubernetes_validate")

ROOT = Path(__file__).parents[2]
SERVING = ROOT / "jobs" / "kubernetes" / "serving"
VERSIONS = ("1.31", "1.37")
FILES = yaml.safe_load((SERVING / "kustomization.yaml").read_text())["resources"]
MANIFESTS = [each for name in FILES for each in yaml.safe_load_all((SERVING / name).read_text())]
DEPLOYMENT, SERVICE, HEADLESS, SCALER, BUDGET, NETWORK = MANIFESTS
POD = DEPLOYMENT["spec"]["template"]["spec"]
CONTAINERS = {each["name"]: each for each in POD["initContainers"] + POD["containers"]}
TRITON = CONTAINERS["triton"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda each: f"{each['kind']} {each['metadata']['name']}")
def test_each_manifest_fits_the_schema(manifest, version):
    kubernetes_validate.validate(manifest, version, strict=True)


def test_all_files_are_named_or_are_no_manifests():
    there = {path.name for path in SERVING.iterdir()} - {"kustomization.yaml", "adapter.yaml"}
    assert there == set(FILES)


def test_everything_selects_the_pods_of_the_deployment():
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    spread = [each["labelSelector"]["matchLabels"] for each in POD["topologySpreadConstraints"]]
    selected = [
        DEPLOYMENT["spec"]["selector"]["matchLabels"],
        SERVICE["spec"]["selector"],
        HEADLESS["spec"]["selector"],
    ]
    selected += [BUDGET["spec"]["selector"]["matchLabels"], NETWORK["spec"]["podSelector"]["matchLabels"]]
    assert all(each == labels for each in spread + selected)
    assert SCALER["spec"]["scaleTargetRef"]["name"] == DEPLOYMENT["metadata"]["name"]
    assert "replicas" not in DEPLOYMENT["spec"]  # else each `kubectl apply` would undo the autoscaler


@pytest.mark.parametrize("name", sorted(CONTAINERS))
def test_a_container_is_locked_and_bounded_and_writes_to_volumes_only(name):
    container = CONTAINERS[name]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert (POD["securityContext"]["runAsNonRoot"], POD["securityContext"]["runAsUser"]) == (True, 10001)
    assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
    assert "memory" in container["resources"]["limits"]
    assert container["image"].endswith("-triton")
    assert "\nUSER 10001:10001\n" in (ROOT / "jobs" / "docker" / "triton.Dockerfile").read_text()
    volumes = {each["name"] for each in POD["volumes"]}
    assert {each["name"] for each in container["volumeMounts"]} <= volumes


def test_followers_write_where_triton_reads():
    command = typer.main.get_command(app)
    for name in ("place", "follow"):
        words = CONTAINERS[name]["command"]
        assert words[0] == "genrec-batch"
        parsed(command, words[1:])
        assert "/models/repository" in " ".join(words)
    assert "--once" in CONTAINERS["place"]["command"]
    assert "--once" not in CONTAINERS["follow"]["command"]
    assert TRITON["command"][:3] == ["serve.sh", "/opt/genrec-batch", "/models/repository"]
    mounts = {each["name"]: each for each in TRITON["volumeMounts"]}
    assert (mounts["models"]["mountPath"], mounts["models"]["readOnly"]) == ("/models", True)
    assert mounts["shm"]["mountPath"].endswith("/shm")


def test_a_pod_is_ready_once_the_model_is_and_live_while_it_answers():
    (model,) = [word.partition("=")[2] for word in TRITON["command"] if word.startswith("--load-model=")]
    for probe in ("startupProbe", "readinessProbe"):
        assert TRITON[probe]["httpGet"]["path"] == f"/v2/models/{model}/ready"
    probe, script = (
        TRITON["livenessProbe"],
        ROOT / "jobs" / "triton" / "alive.py",
    )  # tests/serving/test_server.py runs it
    python, path, url, asked = probe["exec"]["command"]
    assert (python, Path(path).name, url, asked) == ("python", script.name, "http://127.0.0.1:8000", model)
    assert f"jobs/triton/{script.name}" in (ROOT / "jobs" / "docker" / "triton.Dockerfile").read_text()
    (wait_s,) = [int(line.split()[2]) for line in script.read_text().splitlines() if line.startswith("WAIT_S = ")]
    assert RepositoryConfig().queue_timeout_ms / 1000 < wait_s < probe["timeoutSeconds"]


def test_a_rollout_has_a_pod_for_each_that_ends_and_gives_it_time():
    rolling = DEPLOYMENT["spec"]["strategy"]["rollingUpdate"]
    assert (rolling["maxUnavailable"], rolling["maxSurge"]) == (0, 1)
    (exit_s,) = [int(word.partition("=")[2]) for word in TRITON["command"] if word.startswith("--exit-timeout-secs=")]
    drained_s = int(TRITON["lifecycle"]["preStop"]["exec"]["command"][1])
    assert drained_s + exit_s < POD["terminationGracePeriodSeconds"]
    assert SCALER["spec"]["minReplicas"] > BUDGET["spec"]["maxUnavailable"]


def test_the_autoscaler_reads_the_metric_that_the_adapter_makes():
    (metric,) = SCALER["spec"]["metrics"]
    (rule,) = yaml.safe_load((SERVING / "adapter.yaml").read_text())["rules"]["custom"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    assert "nv_inference_queue_duration_us" in rule["metricsQuery"]  # tests/serving/test_server.py reads it


def test_nobody_reaches_the_port_over_which_models_are_loaded():
    ports = {each["name"]: each["containerPort"] for each in TRITON["ports"]}
    opened = {port["port"] for rule in NETWORK["spec"]["ingress"] for port in rule["ports"]}
    assert opened == {"grpc", "metrics"} <= ports.keys()
    assert {port["targetPort"] for each in (SERVICE, HEADLESS) for port in each["spec"]["ports"]} == {"grpc"}
    assert any(word.startswith("--grpc-restricted-protocol=model-repository") for word in TRITON["command"])
