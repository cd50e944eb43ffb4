"""A fingerprint changes with everything that changes the picture, and with nothing else."""

import re

from orchestrator.state.fingerprint import fingerprint

PARTS = ("0" * 64, "recipe", 7, "revision", "float32/v1")


def test_it_is_a_digest_that_stays_over_releases() -> None:
    assert re.fullmatch(r"[0-9a-f]{64}", fingerprint(*PARTS))
    # Stored in SQL and in the pictures: another value would make every earlier result unusable.
    assert fingerprint(*PARTS) == "2f4735377247c1356f33d56e32caaf3cfb39f4ce62dff5bba080329285459f75"


def test_each_part_counts() -> None:
    changed = ("1" * 64, "other", 8, "newer", "bfloat16/v1")
    prints = {fingerprint(*PARTS)}
    for position, value in enumerate(changed):
        prints.add(fingerprint(*PARTS[:position], value, *PARTS[position + 1 :]))
    assert len(prints) == 1 + len(changed)


def test_parts_do_not_run_into_each_other() -> None:
    assert fingerprint("a", "b1", 2, "c", "d") != fingerprint("a", "b", 12, "c", "d")
    assert fingerprint("a", "bc", 1, "d", "e") != fingerprint("ab", "c", 1, "d", "e")
