"""Identities are equal when what decides the result is equal, and different when anything of it differs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.failure import PermanentError
from stream.identity import (
    association_id,
    canonical_json,
    chain,
    final_identity,
    hash_parts,
    joint_solution_identity,
    recipe_digest,
    root_identity,
)

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)

RECIPE: dict[str, Any] = {
    "stage": "flat_field",
    "version": "1",
    "parameters": {"skip": False, "threshold": 1.5},
    "references": {"flat": "f1", "dark": None},
    "libraries": {"numpy": "2.4.6"},
    "schema_generation": "1.1",
    "salt": None,
}

FINAL: dict[str, Any] = {
    "member": "m", "solution": "s", "expected": ["a", "b"], "used": ["a"], "recipe": "r",
}  # fmt: skip


def shuffled(value: Any) -> Any:
    """Turn the order of keys around, at every depth."""
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(value)}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


@given(JSON)
@settings(deadline=None)
def test_canonical_json_reads_back_to_the_same_value_whatever_the_order_of_keys(value: Any) -> None:
    assert json.loads(canonical_json(value)) == value
    assert canonical_json(value) == canonical_json(shuffled(value))


def test_canonical_json_keeps_every_bit_of_a_float() -> None:
    for number in (0.1, 1e-310, -0.0, 1 / 3, 2.0**53):
        assert json.loads(canonical_json([number]))[0].hex() == number.hex()


def test_canonical_json_is_stable_for_ever() -> None:
    # A golden text: stored results are found by digests of it.
    assert canonical_json({"b": [1, 1.0, None, True], "a": "ä"}) == '{"a":"ä","b":[1,1.0,null,true]}'.encode()
    assert hash_parts("tag", 1) == "c1423d47b927b36abb140c50c25bd7d8e6e35ae892375e4e52db77c0aae1a450"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": float("nan")}, r"value\.a is nan"),
        ([0, float("inf")], r"value\[1\] is inf"),
        ({"a": {1: 2}}, r"value\.a has the key 1"),
        ({"a": {1, 2}}, r"value\.a is of type set"),
        (b"bytes", "of type bytes"),
        ("\ud800", "lone surrogate"),
    ],
)
def test_what_json_cannot_hold_is_refused_with_its_place(value: Any, text: str) -> None:
    with pytest.raises(PermanentError, match=text):
        canonical_json(value)


def test_root_is_the_exposure_and_its_bytes() -> None:
    assert root_identity("e", "d") == root_identity("e", "d")
    assert len({root_identity("e", "d"), root_identity("e", "x"), root_identity("x", "d")}) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "photom"},
        {"version": "2"},
        {"parameters": {"skip": True, "threshold": 1.5}},
        {"parameters": {"skip": False}},
        {"references": {"flat": "f2", "dark": None}},
        {"references": {"flat": "f1", "dark": "d1"}},
        {"references": {"flat": "f1"}},
        {"libraries": {"numpy": "2.4.7"}},
        {"schema_generation": "1.2"},
        {"salt": "reproc"},
    ],
)
def test_every_part_of_a_recipe_counts(change: dict[str, Any]) -> None:
    assert recipe_digest(**{**RECIPE, **change}) != recipe_digest(**RECIPE)


def test_order_of_parameters_and_references_does_not_count() -> None:
    assert recipe_digest(**shuffled(RECIPE)) == recipe_digest(**RECIPE)


def test_a_chain_depends_on_every_stage_and_their_order() -> None:
    root = root_identity("e", "d")
    assert chain(chain(root, "r1"), "r2") == chain(chain(root, "r1"), "r2")
    assert len({root, chain(root, "r1"), chain(chain(root, "r1"), "r2"), chain(chain(root, "r2"), "r1")}) == 4


def test_kinds_of_identity_never_meet() -> None:
    assert root_identity("a", "b") != chain("a", "b")


@pytest.mark.parametrize("parts", [(["ab", "c"], ["a", "bc"]), ([["a"], "b"], [["a", "b"]]), (["a"], ["a", None])])
def test_boundaries_between_parts_count(parts: tuple[list[Any], list[Any]]) -> None:
    assert hash_parts("t", *parts[0]) != hash_parts("t", *parts[1])


def test_a_joint_solution_depends_on_members_in_canonical_order_recipe_and_stars() -> None:
    members = [("a", "ok", "t1"), ("b", "failed", None)]
    base = joint_solution_identity(members, recipe="r", star_list="s")
    assert base == joint_solution_identity(list(members), recipe="r", star_list="s")
    others = {
        joint_solution_identity(members[::-1], recipe="r", star_list="s"),
        joint_solution_identity([("a", "ok", "t2"), members[1]], recipe="r", star_list="s"),
        joint_solution_identity([("a", "saturated", "t1"), members[1]], recipe="r", star_list="s"),
        joint_solution_identity(members[:1], recipe="r", star_list="s"),
        joint_solution_identity(members, recipe="x", star_list="s"),
        joint_solution_identity(members, recipe="r", star_list="x"),
    }
    assert len(others | {base}) == 7


@pytest.mark.parametrize(
    "change",
    [{"member": "x"}, {"solution": None}, {"expected": ["b", "a"]}, {"used": ["a", "b"]}, {"recipe": "x"}],
)
def test_every_part_of_a_final_identity_counts(change: dict[str, Any]) -> None:
    def identity(parts: dict[str, Any]) -> str:
        rest = {key: value for key, value in parts.items() if key != "member"}
        return final_identity(parts["member"], **rest)

    assert identity({**FINAL, **change}) != identity(FINAL)


def test_an_association_is_its_product_name_and_its_ordered_members() -> None:
    base = association_id("r0000101", ["a", "b"])
    assert base.startswith("r0000101-")
    assert base == association_id("r0000101", ("a", "b"))
    assert len({base, association_id("r0000101", ["b", "a"]), association_id("r0000102", ["a", "b"])}) == 3


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a b", "a\x00"])
def test_a_product_name_that_cannot_name_a_folder_is_refused(name: str) -> None:
    with pytest.raises(PermanentError, match="product name"):
        association_id(name, ["a"])


def test_an_association_without_members_is_refused() -> None:
    with pytest.raises(PermanentError, match="no members"):
        association_id("a", [])
