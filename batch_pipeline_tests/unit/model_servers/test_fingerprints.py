"""Fingerprints change if the model, prompts or options of a result change."""

from batch_pipeline.model_servers.fingerprints import fingerprint


def test_a_fingerprint_names_model_and_digest_and_shortens_the_rest():
    made_with = fingerprint("m:7b", ["sha256:" + "5ced39dfa4ba" * 5], options={"a": 1})

    assert made_with.startswith("m:7b@5ced39dfa4ba options:")
    assert len(made_with) < 60


def test_each_part_changes_the_fingerprint():
    parts = {"prompts": {"image": "a"}, "options": {"a": 1}}
    made = {
        fingerprint("m", ["1"], **parts),
        fingerprint("n", ["1"], **parts),
        fingerprint("m", ["2"], **parts),
        fingerprint("m", [""], **parts),
        fingerprint("m", ["1", "2"], **parts),
        fingerprint("m", ["1"], **parts | {"prompts": {"image": "b"}}),
        fingerprint("m", ["1"], **parts | {"options": {"a": 2}}),
    }

    assert len(made) == 7


def test_the_order_of_parts_does_not_change_the_fingerprint():
    one = fingerprint("m", ["1", "2"], options={"a": 1, "b": 2}, prompts={})
    assert one == fingerprint("m", ["2", "1", ""], prompts={}, options={"b": 2, "a": 1})
