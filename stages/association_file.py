"""Association files: which exposures belong to one product. Parsing and checking, not the state of an association.

The layout is the field's (``products``, each with ``name`` and ``members``, each with ``expname`` and ``exptype``). The
schema is checked on load, and everything that is wrong is named with its place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.product_names import base_name
from stream.failure import PermanentError

__all__ = ["Association", "AssociationMember", "parse_association", "read_association"]

_STRINGS = ("asn_type", "asn_rule", "asn_id", "asn_pool", "program")
_STRINGS_OR_NULL = ("target", "version_id")
_SKYCELL_NUMBERS = (
    "pixel_scale", "ra_projection_center", "dec_projection_center", "x0_projection", "y0_projection", "ra_center",
    "dec_center", "nx", "ny", "orientat", "orientat_projection_center",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class AssociationMember:
    """One exposure of an association.

    Attributes
    ----------
    id : str
        Base name of the file without its suffix: the exposure's id.
    path : Path
        The file, relative names resolved against the association's folder.
    expname, exptype : str
        As written.
    group_id, tweakreg_catalog : str or None
        As written, where given.
    """

    id: str
    path: Path
    expname: str
    exptype: str
    group_id: str | None = None
    tweakreg_catalog: str | None = None


@dataclass(frozen=True, slots=True)
class Association:
    """The first product of an association file, its members in the file's order.

    Attributes
    ----------
    product_name : str
        Name of the product.
    members : tuple of AssociationMember
        In the file's order: the canonical one.
    table_name : str or None
        Base name of the association file (``meta.asn.table_name``); None for a mapping without ``table_name``.
    pool_name : str or None
        ``asn_pool``, where given.
    """

    product_name: str
    members: tuple[AssociationMember, ...]
    table_name: str | None = None
    pool_name: str | None = None


def read_association(path: Path, *, absent: bool = False) -> Association:
    """Read and check an association file.

    Parameters
    ----------
    path : Path
        The file.
    absent : bool
        Whether members' files may be absent.

    Raises
    ------
    PermanentError
        Names the file and the field: not JSON, not the layout, an empty list, a member named twice, or one whose file
        does not exist (unless they may be absent).
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise PermanentError(f"{path}: no such association file") from None
    except OSError as error:
        raise PermanentError(f"{path}: the association cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise PermanentError(f"{path}: not an association: the file is not text") from None
    try:
        document = json.loads(text)
    except ValueError as error:
        raise PermanentError(f"{path}: not an association: the file is not JSON: {error}") from None
    return parse_association(document, source=str(path), folder=path.parent, table_name=path.name, absent=absent)


def parse_association(
    document: Any,
    *,
    source: str = "association",
    folder: Path | None = None,
    table_name: str | None = None,
    absent: bool = False,
) -> Association:
    """Check an association given as a mapping.

    Parameters
    ----------
    document : mapping
        The association.
    source : str
        Named in errors.
    folder : Path, optional
        Members' names are relative to it; by default the working directory.
    table_name : str, optional
        Name of the association file.
    absent : bool
        Whether members' files may be absent.

    Raises
    ------
    PermanentError
        As `read_association`.
    """
    check = _Checker(source)
    document = check.mapping("", document)
    check.header(document)
    products = check.sequence("products", document.get("products"))
    if not products:
        raise PermanentError(f"{source}: products is an empty list; expected one product")
    for number, entry in enumerate(products):
        check.product(f"products[{number}]", entry)
    product = products[0]
    if not product.get("name"):
        raise PermanentError(f"{source}: products[0].name is {product.get('name')!r}; expected the name of the product")
    _check_folder_name(source, product["name"])
    members = _members(source, product["members"], folder or Path())
    if not absent:
        _check_present(source, members)
    name = document.get("table_name", table_name)
    pool = document.get("asn_pool")
    return Association(product["name"], members, name, pool)


def _members(source: str, entries: Sequence[Mapping[str, Any]], folder: Path) -> tuple[AssociationMember, ...]:
    where = "products[0].members"
    if not entries:
        raise PermanentError(f"{source}: {where} is an empty list; expected at least one exposure")
    members: list[AssociationMember] = []
    first_by_id: dict[str, int] = {}
    for number, entry in enumerate(entries):
        path = folder / entry["expname"]
        member = AssociationMember(
            id=base_name(path.name),
            path=path,
            expname=entry["expname"],
            exptype=entry["exptype"],
            group_id=entry.get("group_id"),
            tweakreg_catalog=entry.get("tweakreg_catalog"),
        )
        if member.id in first_by_id:
            raise PermanentError(
                f"{source}: {where}[{number}].expname {entry['expname']!r} is the same exposure ({member.id}) as "
                f"{where}[{first_by_id[member.id]}]; expected each exposure once"
            )
        first_by_id[member.id] = number
        members.append(member)
    return tuple(members)


def _check_present(source: str, members: Sequence[AssociationMember]) -> None:
    absent = [
        f"products[0].members[{number}].expname {member.expname!r} ({member.path})"
        for number, member in enumerate(members)
        if not member.path.is_file()
    ]
    if absent:
        raise PermanentError(f"{source}: {len(absent)} member files do not exist: {', '.join(absent)}")


def _check_folder_name(source: str, name: str) -> None:
    """The product name becomes a folder: it must stay inside the output directory."""
    if name in {".", ".."} or any(character in name for character in "/\\\0"):
        raise PermanentError(f"{source}: products[0].name is {name!r}; expected a name without path separators")


class _Checker:
    """Checks a document's layout; errors name the source and the place."""

    def __init__(self, source: str) -> None:
        self.source = source

    def fail(self, where: str, value: Any, expected: str) -> PermanentError:
        place = where or "the association"
        found = "missing" if value is None else f"{value!r}"
        return PermanentError(f"{self.source}: {place} is {found[:80]}; expected {expected}")

    def mapping(self, where: str, value: Any) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise self.fail(where, value, "an object")
        return value

    def sequence(self, where: str, value: Any) -> Sequence[Any]:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise self.fail(where, value, "a list")
        return value

    def header(self, document: Mapping[str, Any]) -> None:
        for key in _STRINGS:
            if key in document and not isinstance(document[key], str):
                raise self.fail(key, document[key], "text")
        for key in _STRINGS_OR_NULL:
            if document.get(key) is not None and not isinstance(document[key], str):
                raise self.fail(key, document[key], "text or null")
        skycell = document.get("skycell_wcs_info", "none")
        if skycell == "none":
            return
        self.mapping("skycell_wcs_info", skycell)
        if not isinstance(skycell.get("name"), str):
            raise self.fail("skycell_wcs_info.name", skycell.get("name"), "text")
        for key in _SKYCELL_NUMBERS:
            if not isinstance(skycell.get(key), int | float) or isinstance(skycell.get(key), bool):
                raise self.fail(f"skycell_wcs_info.{key}", skycell.get(key), "a number")

    def product(self, where: str, entry: Any) -> None:
        self.mapping(where, entry)
        if entry.get("name") is not None and not isinstance(entry["name"], str):
            raise self.fail(f"{where}.name", entry["name"], "text")
        for number, member in enumerate(self.sequence(f"{where}.members", entry.get("members"))):
            place = f"{where}.members[{number}]"
            self.mapping(place, member)
            for key in ("expname", "exptype"):
                if not isinstance(member.get(key), str) or not member[key]:
                    raise self.fail(f"{place}.{key}", member.get(key), "text")
            for key in ("group_id", "tweakreg_catalog"):
                if key in member and not isinstance(member[key], str):
                    raise self.fail(f"{place}.{key}", member[key], "text")
