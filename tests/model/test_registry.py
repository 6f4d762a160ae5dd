"""`registry`: references, which version they mean, what is not there, and versions that were changed on disk."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from genrec_batch.core.errors import ConfigError, ModelError
from genrec_batch.model import registering, registry
from genrec_batch.model.registry import Begun


@pytest.fixture
def root(tmp_path, model_dir):
    """A registry with ranker@1, the champion, and ranker@2, which has another model card."""
    root, other = tmp_path / "registry", tmp_path / "other"
    shutil.copytree(model_dir, other)
    (other / "README.md").write_text("another card\n")
    registering.promote(registering.register(root, "ranker", model_dir)[0], root)
    registering.register(root, "ranker", other)
    return root


@pytest.mark.parametrize(
    ("text", "means"),
    [("registry:a", ("a", "champion")), ("a@3", ("a", "3")), ("registry:a.b-c@next", ("a.b-c", "next"))],
)
def test_a_reference_is_a_name_with_an_alias_or_a_number(text, means):
    reference = registry.parse(text, "--model")
    assert (reference.name, reference.which) == means
    assert reference.number == (3 if means[1] == "3" else None)


@pytest.mark.parametrize(
    "text", ["registry:", "a@", "a@03", "a@Champion", "../a", "a/b@1", "@3", "a@3@4", ".a", "a@-1"]
)
def test_what_is_no_reference_is_named(text):
    with pytest.raises(ConfigError, match="--model"):
        registry.parse(text, "--model")


def test_an_alias_and_a_number_mean_a_version(root):
    champion = registry.resolve(root, "ranker")
    assert (champion.label, champion.alias) == ("ranker@1", "champion")
    assert champion.facts() == {"name": "ranker", "version": 1, "alias": "champion"}
    second = registry.resolve(root, "ranker", "2")
    assert (second.number, second.alias, second.path) == (2, None, root / "ranker" / "2" / "model")


@pytest.mark.parametrize(
    ("name", "which", "said"),
    [
        ("rankr", "champion", "Did you mean 'ranker'"),
        ("ranker", "7", "no ranker@7. There is ranker@1, ranker@2"),
        ("ranker", "next", "no next yet; `genrec-batch model promote ranker@N --alias next`"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(root, name, which, said):
    with pytest.raises(ModelError, match=said):
        registry.resolve(root, name, which)


def test_a_registry_that_is_not_there_or_not_given_is_named(tmp_path):
    with pytest.raises(ModelError, match="no such directory"):
        registry.resolve(tmp_path / "nowhere", "ranker")
    with pytest.raises(ConfigError, match="GENREC_BATCH_REGISTRY"):
        registry.root_of(None, "--model registry:a")
    with pytest.raises(ConfigError, match="neither a local directory nor"):
        registry.root_of("https://host/registry", "--model registry:a")


def edited(path):
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def added(path):
    (path.parent / "more.txt").write_text("more")


@pytest.mark.parametrize(
    ("change", "file", "said"),
    [
        (edited, "model.safetensors", "model.safetensors was changed"),
        (edited, "README.md", "README.md was changed"),
        (added, "README.md", "more.txt was added"),
        (lambda path: path.unlink(), "catalog.parquet", "catalog.parquet is missing"),
    ],
    ids=["weights", "card", "added", "removed"],
)
def test_a_version_that_was_changed_on_disk_is_refused(root, change, file, said):
    version = registry.resolve(root, "ranker")
    registry.check(version)
    version.path.chmod(0o755)
    change(version.path / file)
    with pytest.raises(ModelError, match=said):
        registry.check(version)
    with pytest.raises(ModelError, match=said):
        registering.promote(version, root)


def test_a_record_that_was_changed_or_copied_to_another_number_is_refused(root):
    record = root / "ranker" / "1" / "version.json"
    shutil.copytree(root / "ranker" / "1", root / "ranker" / "3")
    with pytest.raises(ModelError, match="changed since ranker@3 was registered"):
        registry.version(root, "ranker", 3)
    record.chmod(0o644)
    record.write_text(record.read_text().replace('"trained": true', '"trained": false'))
    with pytest.raises(ModelError, match="changed since ranker@1 was registered"):
        registry.resolve(root, "ranker")
    assert [version.number for version in registry.versions(root, "ranker")] == [2]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"aliases": 3}', json.dumps({"aliases": {}, "history": [], "last": "x"})]
)
def test_a_damaged_state_is_named_with_the_way_out(root, text):
    (root / "ranker" / "registry.json").write_text(text)
    with pytest.raises(ModelError, match=r"registry\.json: damaged; .* promote"):
        registry.resolve(root, "ranker")


def test_a_run_that_is_continued_keeps_its_version_whatever_the_alias_means(root, model_dir, tmp_path):
    first = registry.resolve(root, "ranker").record
    begun = Begun(model=first["fingerprint"], catalog=first["catalog"])
    other = tmp_path / "third"
    shutil.copytree(model_dir, other)
    config = json.loads((other / "config.json").read_text())
    config["trained"] = False
    config["sha256"] = {}
    (other / "config.json").write_text(json.dumps(config))
    third, _ = registering.register(root, "ranker", other)
    assert third.number == 3
    champion = registry.parse("ranker", "--model")
    assert registry.taken(root, champion, begun).label == "ranker@1"
    registering.promote(registry.version(root, "ranker", 2), root)
    assert registry.taken(root, champion, begun).label == "ranker@2", "the same weights: nothing to keep"
    unknown = Begun(model="0" * 64, catalog=first["catalog"])
    assert registry.taken(root, champion, unknown).label == "ranker@2"
    assert registry.taken(root, registry.parse("ranker@3", "--model"), begun).label == "ranker@3"
    assert registry.taken(root, champion, Begun(model=first["fingerprint"], catalog="other")).label == "ranker@2"


def test_a_pinned_reference_means_the_same_version_later(root):
    text = registry.pinned("registry:ranker@champion", str(root))
    assert text == "registry:ranker@1"
    assert registry.pinned("model/", None) == "model/"
    assert registry.pinned(None, None) is None


def test_a_rollback_is_the_way_out_of_a_changed_version_only_where_that_one_is_live(root):
    file = root / "ranker" / "1" / "model" / "config.json"
    file.chmod(0o644)
    file.write_text("{}")
    with pytest.raises(ModelError, match="take another, or register"):
        registry.check(registry.resolve(root, "ranker", "1"))
    with pytest.raises(ModelError, match=r"take another \(`genrec-batch model rollback ranker`\), or"):
        registry.check(registry.resolve(root, "ranker"))
    with pytest.raises(ModelError, match=r"`genrec-batch model rollback ranker --alias shadow`"):
        registry.check(replace(registry.resolve(root, "ranker"), alias="shadow"))
