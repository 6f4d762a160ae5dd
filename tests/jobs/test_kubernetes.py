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
WEEKLY = load(KUBERNETES / "weekly" / "cronjob.yaml")
STORE = load(KUBERNETES / "store" / "cronjob.yaml")


def pod(manifest):
    return manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", [BASE, GPU, WEEKLY, STORE], ids=["cpu", "gpu", "weekly", "store"])
def test_the_manifest_fits_the_schema(manifest, version):
    kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schema_would_tell():
    wrong = copy.deepcopy(BASE)
    wrong["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"][1]["onExitCodes"]["value"] = [75]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_the_kustomizations_name_files_that_are_there():
    for folder in (KUBERNETES / name for name in ("base", "gpu", "weekly", "store", "ray")):
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
@pytest.mark.parametrize("manifest", [BASE, WEEKLY, STORE], ids=["nightly", "weekly", "store"])
def test_each_exit_code_is_tried_again_or_not(manifest, code, action):
    job = manifest["spec"]["jobTemplate"]["spec"]
    first = [rule["action"] for rule in job["podFailurePolicy"]["rules"] if code in exits(rule)][:1]
    assert first == ([] if action is None else [action])
    assert job["backoffLimit"] > 0  # what no rule names is tried again, so often
    assert pod(manifest)["restartPolicy"] == "Never"  # podFailurePolicy asks for it
    names = {rule["onExitCodes"]["containerName"] for rule in job["podFailurePolicy"]["rules"] if exits(rule)}
    assert names == {pod(manifest)["containers"][0]["name"]}


def test_a_device_at_fault_has_a_code_of_its_own_that_is_tried_again():
    variables = {entry["name"]: entry["value"] for entry in pod(BASE)["containers"][0]["env"]}
    code = int(variables["GENREC_JOB_EXIT_DEVICE"])  # tests/jobs/test_cron.py holds that nightly.sh ends with it
    assert not any(code in exits(rule) for rule in BASE["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"])


def test_the_night_without_a_volume_holds_nothing_but_what_a_pod_may_lose():
    (container,) = pod(STORE)["containers"]
    (command,) = container["command"][2:]
    assert "exec genrec-batch score" in command  # so that a signal reaches it
    assert 'score "$BUCKET/events/ds=$day" "$BUCKET/recs/ds=$day" --if-exists resume' in command
    assert [list(volume) for volume in pod(STORE)["volumes"]] == [["name", "emptyDir"]]
    assert not [entry for entry in container["env"] if "KEY" in entry["name"] or "SECRET" in entry["name"]]


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


def test_the_weekly_job_trains_in_the_image_with_torch_and_meets_no_other_week():
    (container,) = pod(WEEKLY)["containers"]
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    assert (container["command"], container["image"][-4:]) == (["weekly.sh"], "-gpu")
    assert "[torch," in (ROOT / "jobs" / "docker" / "gpu.Dockerfile").read_text()
    script = (ROOT / "jobs" / "cron" / "weekly.sh").read_text()
    assert all(name in script for name in variables if name.startswith("GENREC_JOB"))
    assert WEEKLY["spec"]["concurrencyPolicy"] == "Forbid"
    assert int(variables["GENREC_JOB_TIMEOUT"]) < WEEKLY["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"]


def test_night_and_week_share_the_registry_and_the_name():
    nightly, weekly = (
        {entry["name"]: entry["value"] for entry in pod(manifest)["containers"][0]["env"]}
        for manifest in (BASE, WEEKLY)
    )
    assert nightly["GENREC_BATCH_REGISTRY"] == weekly["GENREC_BATCH_REGISTRY"]
    assert nightly["GENREC_BATCH_MODEL"] == f"registry:{weekly['GENREC_JOB_NAME']}@champion"
    volumes = [pod(manifest)["volumes"][0]["persistentVolumeClaim"] for manifest in (BASE, WEEKLY)]
    assert volumes[0] == volumes[1]


RAY = load(KUBERNETES / "ray" / "rayjob.yaml")


@pytest.mark.parametrize("version", VERSIONS)
def test_the_pods_of_the_ray_job_fit_the_schema(version):
    """KubeRay's own schema is in no registry that tests use; its pods are compared as those of a Deployment."""
    cluster = RAY["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        labels = group["template"]["metadata"]["labels"]
        spec = {"selector": {"matchLabels": labels}, "template": group["template"]}
        deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "ray"}, "spec": spec}
        kubernetes_validate.validate(deployment, version, strict=True)


def test_the_ray_job_is_not_submitted_again_by_itself():
    spec = RAY["spec"]
    assert (RAY["apiVersion"], RAY["kind"]) == ("ray.io/v1", "RayJob")
    assert (spec["backoffLimit"], spec["submitterConfig"]["backoffLimit"]) == (0, 0)
    assert {"--ray", "auto", "--if-exists", "resume"} <= set(spec["entrypoint"].split())
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    assert f"ray=={spec['rayClusterSpec']['rayVersion']}" in pinned
