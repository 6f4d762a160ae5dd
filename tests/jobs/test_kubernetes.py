"""jobs/kubernetes and jobs/docker, as far as they can be held to something without a cluster and without Docker."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")
kubernetes_validate = pytest.importorskip("kubernetes_validate")

ROOT = Path(__file__).parents[2]
KUBERNETES, DOCKER = ROOT / "jobs" / "kubernetes", ROOT / "jobs" / "docker"
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


@pytest.mark.parametrize("path", sorted(DOCKER.glob("*.Dockerfile")), ids=lambda p: p.stem)
def test_hadolint_finds_nothing(path):
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("hadolint is not installed; `make test` installs it")
    done = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", sorted(DOCKER.glob("*.Dockerfile")), ids=lambda p: p.stem)
def test_an_image_is_pinned_runs_as_nobody_special_and_copies_what_the_context_holds(path):
    text = path.read_text()
    assert all(re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+( AS build)?", image) for image in froms(text))
    assert len(froms(text)) == 2
    assert "\nUSER 10001:10001\n" in text
    assert pod(BASE)["securityContext"]["runAsUser"] == 10001
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {name for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE) for name in line.split()}
    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)


def froms(text):
    return re.findall(r"^FROM (.*)$", text, flags=re.MULTILINE)
