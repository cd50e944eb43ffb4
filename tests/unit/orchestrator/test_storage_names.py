"""Result names: any custom_id becomes a name that every file system takes, and no two become the same."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.storage import result_name

RESERVED = re.compile(r"(?i)^(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)")


@pytest.mark.parametrize(
    "custom_id", ["a", "a/b c", "IMG_0001", "2024/Sommer/Kleid rot", "日本/服", "a.b.c", "x-y_z(1)"]
)
def test_a_harmless_id_keeps_its_name_and_folders(custom_id: str) -> None:
    assert result_name(custom_id) == f"{custom_id}.png"


@pytest.mark.parametrize(
    "custom_id",
    [
        "", "/", "..", "../../etc/passwd", "/etc/passwd", "a/../b", "a//b", "a/./b", "con", "NUL.txt", "a/COM1/b",
        "lpt9",
        "trailing.", "trailing ", " leading", "a./b", ".hidden", "a:b", "a*b", "a\\b", 'a"b', "a|b", "a\nb", "a\0b",
        "\u202egnp", "\ud800", "a.png/b", "A.PNG/b", "~" * 300, "a/" * 150, "é" * 200, "e\u0301", "x" * 181,
        "a~0123456789abcdef",
    ],
)  # fmt: skip
def test_a_harmful_id_gets_a_safe_name_with_a_digest(custom_id: str) -> None:
    name = result_name(custom_id)
    assert re.search(r"~[0-9a-f]{16}\.png$", name)
    assert name != f"{custom_id}.png"
    check_safe(name)


@given(st.text(max_size=300))
def test_every_id_has_a_safe_name(custom_id: str) -> None:
    check_safe(result_name(custom_id))


@given(st.text("aAbB./~ 0\u0301é", max_size=12), st.text("aAbB./~ 0\u0301é", max_size=12))
def test_two_ids_never_share_a_name(one: str, other: str) -> None:
    if one != other:
        assert result_name(one) != result_name(other)
        folded = [result_name(each, ignore_case=True).casefold() for each in (one, other)]
        assert folded[0] != folded[1]


def test_ids_that_differ_by_case_stay_apart_where_case_is_ignored() -> None:
    names = {result_name(each, ignore_case=True).lower() for each in ("sku", "SKU", "Sku")}
    assert len(names) == 3
    assert "sku.png" in names


@given(st.text("aA.~take2", max_size=9), st.text("aA.~take2", max_size=9), st.integers(1, 3), st.integers(1, 3))
def test_no_take_of_an_id_stands_where_one_of_another_id_goes(one: str, other: str, take: int, next_take: int) -> None:
    if (one, take) != (other, next_take):
        assert result_name(one, take) != result_name(other, next_take)
        folded = [result_name(*each, ignore_case=True).casefold() for each in ((one, take), (other, next_take))]
        assert folded[0] != folded[1]


def test_a_take_is_named_after_the_first_one() -> None:
    assert result_name("shirts/7", 2) == "shirts/7.take2.png"
    assert result_name("shirts/7.take2") != "shirts/7.take2.png"
    check_safe(result_name("x" * 300, 12))


def test_a_result_never_stands_where_another_needs_a_folder() -> None:
    assert not result_name("a.png/b").startswith(result_name("a") + "/")


def check_safe(name: str) -> None:
    assert len(name.encode()) <= 200
    assert name.endswith(".png")
    for part in name.split("/"):
        assert part not in {"", ".", ".."}
        assert not RESERVED.match(part)
        assert part == part.strip(" ").rstrip(".")
        assert not re.search(r'[\x00-\x1f<>:"\\|?*]', part)
        assert not part.startswith(".")
