"""What config.json says of a model's training: whole, or refused with the file's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from genrec_batch.core.errors import ModelError
from genrec_batch.model.trained import Trained

TRAINED = Trained(
    decode="slate", seen_masked=False, max_events=50, heads=("engagement",), catalog_sha256="ab", facts={"epochs": 3}
)
PATH = Path("m/config.json")


def test_what_is_stored_is_read_again():
    assert Trained.read(TRAINED.stored(), PATH) == TRAINED
    assert Trained.read(None, PATH) is None


@pytest.mark.parametrize("entry", [{}, [], {**TRAINED.stored(), "max_events": "many"}])
def test_a_damaged_entry_names_the_file(entry):
    with pytest.raises(ModelError, match=r"m/config.json: the entry `training` is damaged"):
        Trained.read(entry, PATH)


def test_another_mode_of_decoding_is_refused():
    with pytest.raises(ModelError, match=r"training\.decode is 'beam', not one of slate, candidates"):
        Trained.read({**TRAINED.stored(), "decode": "beam"}, PATH)
