"""jobs/kubernetes, compared with the schemas of Kubernetes: no cluster runs it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")
kubernetes_validate = pytest.importorskip("kubernetes_validate")

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "jobs" / "kubernetes"
VERSIONS = ("1.31", "1.37")  # podFailurePolicy is stable from 1.31 on


def load(path):
    return yaml.safe_load(path.read_text())


def patched(manifest, operations):
    """Apply the JSON patch (RFC 6902, as far as it is used here); a path that is not there is an error."""
    manifest = copy.deepcopy(manifest)
    for operation in operations:
        *way, last = [step.replace("~1", "/") for step in operation["path"].split("/")[1:]]
        place = manifest
        for step in way:
            place = place[int(step)] if isinstance(place, list) else place[step]
        if operation["op"] == "replace":
            assert last in place, operation
        if isinstance(place, list):
            assert last == "-"
            place.append(operation["value"])
        else:
            place[last] = operation["value"]
    return manifest


BASE = load(KUBERNETES / "base" / "cronjob.yaml")
GPU = patched(BASE, load(KUBERNETES / "gpu" / "gpu.yaml"))


def pod(manifest):
    return manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", [BASE, GPU], ids=["cpu", "gpu"])
def test_the_manifest_fits_the_schema(manifest, version):
    kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schema_would_tell():
    wrong = copy.deepcopy(BASE)
    wrong["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"][1]["onExitCodes"]["value"] = [75]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_the_kustomizations_name_files_that_are_there():
    for folder in (KUBERNETES / "base", KUBERNETES / "gpu"):
        kustomization = load(folder / "kustomization.yaml")
        for name in kustomization["resources"] + [patch["path"] for patch in kustomization.get("patches", [])]:
            assert (folder / name).exists(), name
    (patch,) = load(KUBERNETES / "gpu" / "kustomization.yaml")["patches"]
    assert patch["target"] == {"kind": BASE["kind"], "name": BASE["metadata"]["name"]}


@pytest.mark.parametrize(
    ("code", "action"),
    [(75, None), (124, None), (137, None), (129, "Ignore"), (130, "Ignore"), (143, "Ignore")]
    + [(code, "FailJob") for code in (1, 2, 3, 4, 5, 6)],
)
def test_each_exit_code_is_tried_again_or_not(code, action):
    job = BASE["spec"]["jobTemplate"]["spec"]
    first = [rule["action"] for rule in job["podFailurePolicy"]["rules"] if code in exits(rule)][:1]
    assert first == ([] if action is None else [action])
    assert job["backoffLimit"] > 0  # what no rule names is tried again, so often
    assert pod(BASE)["restartPolicy"] == "Never"  # podFailurePolicy asks for it


def exits(rule):
    return rule.get("onExitCodes", {}).get("values", [])


def test_the_pod_runs_as_the_user_of_the_images():
    assert pod(BASE)["securityContext"]["runAsUser"] == 10001
    assert "\nUSER 10001:10001\n" in (ROOT / "jobs" / "docker" / "cpu.Dockerfile").read_text()


def test_nothing_to_score_is_a_success_and_nights_do_not_meet():
    variables = {entry["name"]: entry["value"] for entry in pod(BASE)["containers"][0]["env"]}
    assert variables["GENREC_JOB_EXIT_WHEN_EMPTY"] == "0"
    script = (ROOT / "jobs" / "cron" / "nightly.sh").read_text()
    assert all(name in script for name in variables if name.startswith("GENREC_JOB"))
    assert BASE["spec"]["concurrencyPolicy"] == "Forbid"
    assert int(variables["GENREC_JOB_TIMEOUT"]) < BASE["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"]


def test_the_gpu_patch_asks_for_one_gpu():
    assert pod(GPU)["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert pod(GPU)["containers"][0]["image"].endswith("-gpu")
