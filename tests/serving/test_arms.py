"""`arms`: the arms of an experiment in real time, with the users that they have in the nightly run."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from genrec_batch import score
from genrec_batch.core.arm_options import ASSIGNS
from genrec_batch.core.errors import ConfigError, GenrecError, InputError
from genrec_batch.model import weights
from genrec_batch.rules.assign import Assignment
from genrec_batch.serving import repository
from genrec_batch.serving.arms import Arms
from genrec_batch.serving.options import ExportConfig
from tests.serving.conftest import EXACT, SAMPLE
from tests.serving.requests import differences, request, rows_of

MILLION = 1_000_000


@pytest.fixture(scope="session")
def second(tmp_path_factory):
    """Another model of the sample's catalog."""
    folder = tmp_path_factory.mktemp("models") / "second"
    config = weights.load(SAMPLE / "model").config
    folder.mkdir()
    (folder / "catalog.parquet").write_bytes((SAMPLE / "model" / "catalog.parquet").read_bytes())
    weights.save(folder, config, weights.initial_weights(config, 5), trained=True, card="for tests\n")
    return folder


@pytest.fixture
def two(second, tmp_path):
    """Export an experiment of both models."""

    def exported(**options):
        arms = (f"control={SAMPLE / 'model'}:70", f"test={second}:30")
        wanted = {"format": "triton", "out": str(tmp_path / "repository"), "arm": arms, "salt": "exp42", **options}
        return repository.export(None, ExportConfig(**wanted))

    return exported


def test_users_get_the_arm_and_the_rows_of_the_nightly_run(sample, second, two, tmp_path):
    arms = (f"control={SAMPLE / 'model'}:70", f"test={second}:30")
    score(sample.folder / "log.parquet", tmp_path / "r.parquet", arm=arms, salt="exp42", limit=150, **EXACT)
    recs = pl.read_parquet(tmp_path / "r.parquet")
    users = recs["user_id"].unique().sort().to_list()
    contents = [request(sample.events[user], as_of=sample.as_of, user_id=user) for user in users]
    answers = dict(zip(users, Arms.open(two()).answers(contents), strict=True))
    assert max(differences(rows_of(answers), recs).values()) < 1e-5
    theirs = {row["user_id"]: (row["arm"], row["bucket"]) for row in recs.iter_rows(named=True)}
    assert {user: (answer.arm, answer.bucket) for user, answer in answers.items()} == theirs
    versions = {answer.arm: answer.version for answer in answers.values()}
    assert versions == {
        "control": weights.load(SAMPLE / "model").fingerprint[:16],
        "test": weights.load(second).fingerprint[:16],
    }


@pytest.mark.parametrize("assign", ASSIGNS)
@pytest.mark.parametrize("text", [False, True])
def test_a_million_users_are_assigned_as_in_the_batch_run(two, assign, text):
    served = Arms.open(two(assign=assign))
    config = ExportConfig(format="triton", out="x", arm=("control=a:70", "test=b:30"), salt="exp42")
    ids = pl.Series("user_id", np.arange(MILLION) * 7919)
    ids = ids.cast(pl.String) + "ü" if text else ids
    bucket_N, arm_N = served.assigned(ids.to_list())
    batch = Assignment.of(config.arms(), salt="exp42", assign=assign)
    theirs_N = batch.buckets(ids.cast(pl.String).cast(pl.Binary).to_list())  # as `scoring.experiment` does
    np.testing.assert_array_equal(bucket_N, theirs_N)
    np.testing.assert_array_equal(arm_N, batch.arms(theirs_N))


def test_a_request_without_a_user_is_refused_and_costs_no_other(sample, two):
    good = request(sample.events[1], user_id=1)
    refused, fine, broken = Arms.open(two()).answers([request(sample.events[1]), good, b"{"])
    assert isinstance(refused, InputError)
    assert "user_id is missing" in str(refused)
    assert (fine.arm, len(fine)) == ("control", 10)
    assert isinstance(broken, InputError)


def test_one_model_answers_without_an_arm(sample):
    (answer,) = sample.served.answers([request(sample.events[1])])
    assert (answer.arm, answer.bucket) == ("", -1)
    assert answer.version == weights.load(SAMPLE / "model").fingerprint[:16]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"salt": None}, "--arm and --salt go together"),
        ({"arm": ()}, "--arm and --salt go together"),
        ({"arm": ("a=x:50",)}, "add up to 50, not to 100"),
        ({"arm": ("a=x:100", "b=y:10:shadow")}, "--arm b: a shadow answers nobody"),
        ({"arm": ("a=x:100", "a.beam_width=4")}, "--arm a: it has beam_width of its own"),
    ],
)
def test_arms_that_cannot_be_served_are_refused(two, options, said):
    with pytest.raises(ConfigError) as refused:
        two(**options)
    assert said in str(refused.value)


def test_ids_of_two_types_cannot_be_one_tensor(two, tmp_path, model_dir):
    texts = tmp_path / "texts"
    texts.mkdir()
    for file in ("model.safetensors", "config.json"):
        (texts / file).write_bytes((model_dir / file).read_bytes())
    stored = json.loads((texts / "config.json").read_text())
    (texts / "config.json").write_text(json.dumps({**stored, "sha256": {}}))
    catalog = pl.read_parquet(model_dir / "catalog.parquet").with_columns(pl.col("video_id").cast(pl.String))
    catalog.write_parquet(texts / "catalog.parquet")
    with pytest.raises(ConfigError, match="ids of several types"):
        two(arm=(f"a={model_dir}:50", f"b={texts}:50"))


def test_the_command_takes_a_directory_or_arms(run, second, tmp_path):
    arms = ["--arm", f"control={SAMPLE / 'model'}:90", "--arm", f"test={second}:10", "--salt", "exp42"]
    ran = run("model", "export", "--format", "triton", "--out", tmp_path / "repo", *arms)
    assert ran.code == 0, ran.err
    assert (tmp_path / "repo" / "genrec" / "1" / "arms" / "test" / "model.safetensors").is_file()
    for arguments in (
        ["--format", "triton", "--out", "x"],
        ["--format", "onnx"],
        [second, *arms, "--format", "triton"],
    ):
        assert run("model", "export", *arguments, "--out", "x").code == 2
    with pytest.raises(GenrecError, match="either DIR or --arm"):
        repository.export(None, ExportConfig(format="triton", out="x"))
