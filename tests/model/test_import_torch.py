"""Foreign state_dicts become our parameters, or one error names everything that does not match."""

import numpy as np
import pytest

from genrec_batch.core.errors import ModelError
from genrec_batch.model import import_torch
from genrec_batch.model.weights import ModelConfig, initial_weights, parameter_shapes

CONFIG = ModelConfig(vocabulary=50, width=32, ffn=48, layers=2, positions=30, heads=4, profile=20, video=24)


@pytest.fixture
def weights():
    return initial_weights(CONFIG, 3)


def renamed(weights, changes):
    """Replace the beginnings of names."""
    result = {}
    for name, weight in weights.items():
        old = next((old for old in changes if name.startswith(old)), "")
        result[changes.get(old, "") + name.removeprefix(old)] = weight
    return result


def assert_all_there(converted, weights):
    assert list(converted) == list(parameter_shapes(CONFIG))
    for name, weight in weights.items():
        np.testing.assert_array_equal(converted[name], weight)


def test_our_own_names_and_the_sizes_read_off_the_shapes(weights):
    config, converted = import_torch.convert(weights, heads=4)
    assert config == CONFIG
    assert_all_there(converted, weights)


@pytest.mark.parametrize(
    "changes",
    [
        {
            "encoder.": "backbone.transformer.",
            "token_embedding": "item_embedding",
            "position_embedding": "pos_embedding",
        },
        {"feature_projection": "input_projection", "user_profile_projection": "user_profile_proj"},
        {"video_feature_projection": "video_feature_proj", "output_projection": "lm_head"},
        {"recommendation_head": "heads.recommendation", "retention_head": "task_heads.retention"},
    ],
)
@pytest.mark.parametrize(
    "wrapper",
    ["", "module.", "model.", "module.model.", "_orig_mod.", "module._orig_mod.", "model._orig_mod.", "net.", "a.b.c."],
)
def test_usual_names_find_their_place(weights, changes, wrapper):
    theirs = {wrapper + name: weight for name, weight in renamed(weights, changes).items()}
    config, converted = import_torch.convert(theirs, heads=4)
    assert config == CONFIG
    assert_all_there(converted, weights)


def test_parts_may_be_compiled_or_wrapped_alone(weights):
    wrappers = {"encoder.layers.0.": "_orig_mod.", "encoder.layers.1.": "_checkpoint_wrapped_module.", "token_": ""}
    theirs = renamed(weights, {old: f"net.{old}{wrapper}" for old, wrapper in wrappers.items()})
    theirs = renamed(theirs, {"feature_projection.": "net.feature_projection._orig_mod."})
    assert_all_there(import_torch.convert(theirs, heads=4)[1], weights)


def test_a_prefix_of_the_encoder_is_that_of_the_others_whatever_else_there_is(weights):
    theirs = {f"net.{name}": weight for name, weight in weights.items()}
    theirs["criterion.weight"] = np.ones(4, np.float32)
    with pytest.raises(ModelError, match=r"cannot be imported[^:]*\n  [^:]*:\n    criterion\.weight \(4,\)$"):
        import_torch.convert(theirs, heads=4)


@pytest.mark.parametrize("absent", import_torch.TIED)
@pytest.mark.parametrize("wrapper", ["", "_orig_mod.", "net."])
def test_tied_weights_are_saved_once(weights, absent, wrapper):
    tied = dict(weights) | {import_torch.TIED[0]: weights[import_torch.TIED[1]]}
    theirs = {wrapper + name: weight for name, weight in tied.items() if name != absent}
    converted = import_torch.convert(theirs, heads=4)[1]
    assert_all_there(converted, tied)
    assert import_torch.is_tied(converted)
    assert not import_torch.is_tied(import_torch.convert(weights, heads=4)[1])


def test_a_tied_output_without_a_bias_adds_nothing(weights):
    theirs = {name: weight for name, weight in weights.items() if not name.startswith("output_projection")}
    converted = import_torch.convert(theirs, heads=4)[1]
    assert not converted["output_projection.bias"].any()


def test_an_output_under_a_name_of_its_own_is_not_taken_for_tied(weights):
    theirs = renamed(weights, {"output_projection.weight": "output_proyection.weight"})
    with pytest.raises(ModelError) as caught:
        import_torch.convert(theirs, heads=4)
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert "output_proyection.weight (50, 32) - Did you mean 'output_projection.weight'?" in lines
    assert "output_projection.weight (50, 32) - Did you mean 'output_proyection.weight'?" in lines


def test_a_position_table_may_be_a_bare_parameter_with_a_leading_axis(weights):
    theirs = dict(weights)
    theirs["pos_embedding"] = theirs.pop("position_embedding.weight")[None]
    assert_all_there(import_torch.convert(theirs, heads=4)[1], weights)


def test_a_rename_places_what_no_rule_finds(weights):
    theirs = renamed(weights, {"output_projection.weight": "vocab", "output_projection.bias": "vocab_b"})
    renames = {"vocab": "output_projection.weight", "vocab_b": "output_projection.bias"}
    assert_all_there(import_torch.convert(theirs, renames, heads=4)[1], weights)


def test_everything_without_a_place_and_everything_missing_is_listed_with_shapes(weights):
    theirs = dict(weights)
    theirs["encoder.norm.weight"] = np.ones(32, np.float32)
    theirs["pooler.dense"] = theirs.pop("position_embedding.weight")
    del theirs["encoder.layers.1.linear2.bias"]
    with pytest.raises(ModelError) as caught:
        import_torch.convert(theirs, heads=4)
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert {"encoder.norm.weight (32,)", "pooler.dense (30, 32)"} <= set(lines)
    assert {"encoder.layers.1.linear2.bias (32)", "position_embedding.weight (positions, 32)"} <= set(lines)
    assert lines.index("pooler.dense (30, 32)") < lines.index("parameters without a tensor:")


def test_two_tensors_for_one_parameter_are_both_named(weights):
    theirs = dict(weights) | {"item_embedding.weight": weights["token_embedding.weight"]}
    with pytest.raises(ModelError) as caught:
        import_torch.convert(theirs, heads=4)
    assert "token_embedding.weight (50, 32) (one of 2 for token_embedding.weight)" in str(caught.value)
    assert "item_embedding.weight (50, 32) (one of 2 for token_embedding.weight)" in str(caught.value)


def test_a_rename_settles_which_of_two_is_meant_only_if_the_other_goes(weights):
    theirs = dict(weights) | {"item_embedding.weight": weights["token_embedding.weight"]}
    with pytest.raises(ModelError, match="one of 2"):
        import_torch.convert(theirs, {"item_embedding.weight": "token_embedding.weight"}, heads=4)


def test_renames_of_and_to_nothing_are_named(weights):
    with pytest.raises(ModelError, match=r"no tensor 'output_projecton.bias'. Did you mean 'output_projection.bias'"):
        import_torch.convert(weights, {"output_projecton.bias": "output_projection.bias"}, heads=4)
    with pytest.raises(ModelError, match=r"no parameter 'output_bias'"):
        import_torch.convert(weights, {"output_projection.bias": "output_bias"}, heads=4)


def test_shapes_that_do_not_fit_each_other_are_named(weights):
    theirs = dict(weights) | {"encoder.layers.1.linear1.weight": np.ones((47, 32), np.float32)}
    with pytest.raises(ModelError, match=r"linear1.weight: shape \(47, 32\), expected \(48, 32\)"):
        import_torch.convert(theirs, heads=4)


def test_no_encoder_and_two_encoders_are_refused(weights):
    with pytest.raises(ModelError, match="no encoder"):
        import_torch.convert({n: w for n, w in weights.items() if not n.startswith("encoder.")}, heads=4)
    with pytest.raises(ModelError, match="more than one encoder"):
        import_torch.convert(weights | renamed(weights, {"encoder.": "decoder."}), heads=4)


def test_heads_must_divide_the_width(weights):
    with pytest.raises(ModelError, match="width 32 is not a multiple of heads 5"):
        import_torch.convert(weights, heads=5)


def test_another_number_of_features_is_another_layout():
    config = ModelConfig(vocabulary=50, width=32, ffn=48, layers=1, positions=30, heads=4, features=512)
    with pytest.raises(ModelError, match="512 dense features"):
        import_torch.convert(initial_weights(config, 1), heads=4)
