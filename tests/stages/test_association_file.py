"""Association files are checked on load, and what is wrong is named with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages.association_file import parse_association, read_association
from stream.failure import PermanentError


def document(*names: str, **changes: Any) -> dict[str, Any]:
    return {
        "asn_type": "None", "asn_rule": "DMS_ELPP_Base", "program": "noprogram", "version_id": None, "target": None,
        "asn_id": "a3001", "asn_pool": "none", "skycell_wcs_info": "none",
        "products": [{"name": "visit1", "members": [{"expname": name, "exptype": "science"} for name in names]}],
        **changes,
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for n in (1, 2, 3):
        (tmp_path / f"r_000{n}_wfi01_uncal.asdf").touch()
    return tmp_path


NAMES = tuple(f"r_000{n}_wfi01_uncal.asdf" for n in (2, 1, 3))


def test_members_keep_the_order_of_the_file(folder: Path) -> None:
    (folder / "x_asn.json").write_text(json.dumps(document(*NAMES)))
    association = read_association(folder / "x_asn.json")
    assert association.product_name == "visit1"
    assert [member.id for member in association.members] == ["r_0002_wfi01", "r_0001_wfi01", "r_0003_wfi01"]
    assert [member.path for member in association.members] == [folder / name for name in NAMES]
    assert association.table_name == "x_asn.json"
    assert association.pool_name == "none"


def test_optional_keys_of_members_are_kept(folder: Path) -> None:
    content = document(NAMES[0])
    content["products"][0]["members"][0] |= {"group_id": "g", "tweakreg_catalog": "c.parquet", "other": 1}
    (member,) = parse_association(content, folder=folder).members
    assert (member.group_id, member.tweakreg_catalog, member.exptype) == ("g", "c.parquet", "science")


def test_only_products_are_required(folder: Path) -> None:
    content = {"products": document(*NAMES)["products"], "table_name": "given"}
    association = parse_association(content, folder=folder)
    assert (association.table_name, association.pool_name) == ("given", None)


def test_only_the_first_product_counts(folder: Path) -> None:
    content = document(*NAMES)
    content["products"].append({"name": "second", "members": []})
    assert len(parse_association(content, folder=folder).members) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"products": ...}, "products is missing; expected a list"),
        ({"products": {}}, r"products is \{\}; expected a list"),
        ({"products": []}, "products is an empty list"),
        ({"products": [3]}, r"products\[0\] is 3; expected an object"),
        ({"products": [{"name": "n"}]}, r"products\[0\]\.members is missing; expected a list"),
        ({"products": [{"name": "n", "members": []}]}, r"products\[0\]\.members is an empty list"),
        ({"products": [{"members": [{"expname": "a", "exptype": "s"}]}]}, r"products\[0\]\.name is None"),
        ({"products": [{"name": 3, "members": []}]}, r"products\[0\]\.name is 3; expected text"),
        ({"products": [{"name": "../up", "members": [{"expname": "a", "exptype": "s"}]}]}, "without path separators"),
        ({"products": [{"name": "n", "members": ["a"]}]}, r"members\[0\] is 'a'; expected an object"),
        ({"products": [{"name": "n", "members": [{"exptype": "s"}]}]}, r"members\[0\]\.expname is missing"),
        ({"products": [{"name": "n", "members": [{"expname": "a"}]}]}, r"members\[0\]\.exptype is missing"),
        ({"products": [{"name": "n", "members": [{"expname": 1, "exptype": "s"}]}]}, r"expname is 1; expected text"),
        ({"asn_type": 3}, "asn_type is 3; expected text"),
        ({"target": 3}, "target is 3; expected text or null"),
        ({"skycell_wcs_info": {"name": "x"}}, r"skycell_wcs_info\.pixel_scale is missing; expected a number"),
        ({"skycell_wcs_info": 3}, "skycell_wcs_info is 3; expected an object"),
    ],
)
def test_a_wrong_layout_is_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    content = {key: value for key, value in (document(*NAMES) | change).items() if value is not ...}
    (folder / "x_asn.json").write_text(json.dumps(content))
    with pytest.raises(PermanentError, match=message) as caught:
        read_association(folder / "x_asn.json")
    assert str(caught.value).startswith(str(folder / "x_asn.json"))


def test_an_exposure_named_twice_is_refused(folder: Path) -> None:
    with pytest.raises(
        PermanentError, match=r"members\[2\]\.expname .* same exposure \(r_0002_wfi01\) as .*members\[0\]"
    ):
        parse_association(document(NAMES[0], NAMES[1], "./r_0002_wfi01_uncal.asdf"), folder=folder)


def test_every_member_that_does_not_exist_is_named(folder: Path) -> None:
    with pytest.raises(
        PermanentError, match=r"2 member files do not exist: .*members\[0\].*'a\.asdf'.*members\[2\].*'b\.asdf'"
    ):
        parse_association(document("a.asdf", NAMES[0], "b.asdf"), folder=folder)


@pytest.mark.parametrize("content", [b"not json", b"", b"\xff\xfe\x00", b"[1]"])
def test_what_is_no_association_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(PermanentError, match=r"x\.json"):
        read_association(tmp_path / "x.json")
    with pytest.raises(PermanentError, match="no such association file"):
        read_association(tmp_path / "y.json")
