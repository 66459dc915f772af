"""The name of a mapped step identifies its upload, whatever the name of the file."""

import re
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_pipeline.errors import RefusedError
from batch_pipeline.orchestration.ops import mapping_key, upload_id_of
from batch_pipeline.testing.media import HOSTILE_FILENAMES

UPLOAD = uuid.UUID("3f2a0000-0000-4000-8000-000000000001")


def test_a_step_is_named_after_its_file():
    assert mapping_key("beach.jpg", UPLOAD) == f"beach_jpg__{UPLOAD.hex}"


@pytest.mark.parametrize("name", HOSTILE_FILENAMES)
def test_hostile_names_make_valid_keys(name):
    check(name, UPLOAD)


@given(st.text(), st.uuids())
def test_every_key_is_valid_short_and_leads_back(name, upload_id):
    check(name, upload_id)


def check(name, upload_id):
    key = mapping_key(name, upload_id)
    assert re.fullmatch(r"[A-Za-z0-9_]{34,80}", key)  # what Dagster accepts as a mapping key
    assert upload_id_of(key) == upload_id


@given(st.uuids(), st.uuids())
def test_a_name_that_looks_like_a_key_does_not_mislead(upload_id, other):
    assert upload_id_of(mapping_key(mapping_key("a.jpg", other), upload_id)) == upload_id


@pytest.mark.parametrize("key", ["", "beach_jpg", "beach__3f2a", f"{UPLOAD.hex}"])
def test_a_key_without_an_id_is_refused(key):
    with pytest.raises(RefusedError, match="does not end in an upload id"):
        upload_id_of(key)
