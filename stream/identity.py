"""Identities: digests that name a result by its input and its recipe. Not the content digest of a product.

Everything that decides a result enters its identity; times, runs and failure texts never do. Each kind of identity is
hashed under its own tag, so that two kinds can never collide by having equal parts.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from stream.failure import PermanentError

__all__ = [
    "NOT_APPLICABLE",
    "association_id",
    "canonical_json",
    "chain",
    "final_identity",
    "hash_parts",
    "joint_solution_identity",
    "recipe_digest",
    "root_identity",
]

NOT_APPLICABLE = "N/A"
"""Stands for a reference that was looked for and does not apply; part of the recipe like any digest."""

_PRODUCT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def canonical_json(value: Any) -> bytes:
    """Encode a JSON value so that equal values give equal bytes: sorted keys, no white space, UTF-8.

    An integer and a float of the same value differ (``1`` and ``1.0``): parameter models fix the type. Floats are
    written with the fewest digits that read back to the same bits.

    Parameters
    ----------
    value : JSON value
        Mappings with text keys, sequences, text, finite numbers, booleans, None.

    Raises
    ------
    stream.failure.PermanentError
        The value holds something that JSON cannot, a number that is not finite, or a key that is not text.
    """
    try:
        return json.dumps(
            _plain(value, "value"), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        ).encode()
    except UnicodeEncodeError as error:
        msg = f"a text with a lone surrogate cannot be written as UTF-8: {error.object[:80]!r}"
        raise PermanentError(msg) from error


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            msg = f"{where} is {value}: a number in JSON must be finite"
            raise PermanentError(msg)
        return float(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                msg = f"{where} has the key {key!r}: keys in JSON are text"
                raise PermanentError(msg)
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{position}]") for position, item in enumerate(value)]
    msg = f"{where} is of type {type(value).__name__}, which JSON cannot hold"
    raise PermanentError(msg)


def hash_parts(tag: str, *parts: Any) -> str:
    """Digest of a tag and JSON values, as 64 hexadecimal digits (SHA-256 of their canonical JSON)."""
    return hashlib.sha256(canonical_json([tag, *parts])).hexdigest()


def root_identity(exposure: str, input_digest: str) -> str:
    """Identity of an ingested exposure: its id and the digest of the bytes of its input file."""
    return hash_parts("root", exposure, input_digest)


def recipe_digest(
    *,
    stage: str,
    version: str,
    parameters: Mapping[str, Any],
    references: Mapping[str, str | None] | None = None,
    libraries: Mapping[str, str] | None = None,
    schema_generation: str = "",
    salt: str | None = None,
) -> str:
    """Digest of everything that decides a stage's result apart from its input.

    Parameters
    ----------
    stage, version : str
        The stage and its version.
    parameters : mapping
        All parameters with their values, defaults included.
    references : mapping of str to str or None
        Digest of each reference by its type; None for one that does not apply.
    libraries : mapping of str to str
        Version of each distribution that the stage declares.
    schema_generation : str
        Generation of the schemas that results are written with.
    salt : str, optional
        The run's name where a result must be computed anew though an equal one is stored.
    """
    digests = {kind: digest or NOT_APPLICABLE for kind, digest in (references or {}).items()}
    return hash_parts("recipe", stage, version, parameters, digests, libraries or {}, schema_generation, salt)


def chain(identity: str, recipe: str) -> str:
    """Identity of a stage's result from the identity of its input and its recipe."""
    return hash_parts("result", identity, recipe)


def joint_solution_identity(members: Sequence[tuple[str, str, str | None]], *, recipe: str, star_list: str) -> str:
    """Identity of a joint solution.

    Parameters
    ----------
    members : sequence of (id, status, tie-point digest or None)
        In canonical order, which is that of the association and never that of arrival.
    recipe : str
        Digest of the joint stage's recipe.
    star_list : str
        Digest of the list of reference stars.
    """
    return hash_parts("solution", [list(member) for member in members], recipe, star_list)


def final_identity(
    member: str, *, solution: str | None, expected: Sequence[str], used: Sequence[str], recipe: str
) -> str:
    """Identity of a finalized exposure.

    Parameters
    ----------
    member : str
        Identity of the member's own result.
    solution : str or None
        Identity of the joint solution; None when the member is finalized without one.
    expected, used : sequence of str
        Member ids in canonical order.
    recipe : str
        Digest of the finalizing stage's recipe.
    """
    return hash_parts("final", member, solution, list(expected), list(used), recipe)


def association_id(product_name: str, members: Sequence[str]) -> str:
    """Id of an association: its product name and a digest of the ordered member ids.

    The ids in association files are not unique, so they play no part. 16 hexadecimal digits tell 2**32 lists of one
    product name apart.

    Raises
    ------
    stream.failure.PermanentError
        There are no members, or the product name cannot be the name of a folder.
    """
    if not _PRODUCT_NAME.fullmatch(product_name):
        msg = (
            f"the product name {product_name!r} cannot name a folder: expected letters, digits, '.', '_', '+' or '-', "
            "the first a letter or digit"
        )
        raise PermanentError(msg)
    if not members:
        msg = f"the association {product_name!r} has no members"
        raise PermanentError(msg)
    return f"{product_name}-{hash_parts('association', product_name, list(members))[:16]}"
