"""The member list of an association: a payload in the store, written once by whoever announces it.

Of the lists of one product name the one that was announced last counts; the others are superseded by it. Which one
that is cannot depend on who reads when: see `take_product_name`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from stream.association import Close
from stream.failure import PermanentError
from stream.identity import canonical_json
from stream.store import ObjectStore

__all__ = [
    "MemberList",
    "associations_of",
    "close_key",
    "load_close",
    "members_key",
    "product_name_key",
    "put_close",
    "put_member_list",
    "read_member_list",
    "superseded_by",
    "take_product_name",
]


@dataclass(frozen=True, slots=True)
class MemberList:
    """Who belongs to an association, in canonical order.

    ``product_name`` is where its products go (None: to the top); ``extra`` is opaque to the engine.
    """

    association: str
    members: tuple[str, ...]
    product_name: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def members_key(run: str, association: str) -> str:
    """Key of an association's member list."""
    return f"runs/{run}/associations/{association}/members"


def close_key(run: str, association: str, revision: int) -> str:
    """Key of one close of an association."""
    return f"runs/{run}/associations/{association}/{revision}"


async def put_member_list(store: ObjectStore, run: str, members: MemberList) -> None:
    """Write the list; an equal one that is there already is fine (the id stands for one list alone)."""
    await store.put_if_absent(members_key(run, members.association), canonical_json(asdict(members)))


async def read_member_list(store: ObjectStore, run: str, association: str) -> MemberList:
    """Read the list.

    Raises
    ------
    stream.failure.PermanentError
        There is none.
    """
    data = await store.get(members_key(run, association))
    if data is None:
        msg = f"association {association} of run {run} has no member list: it was never announced"
        raise PermanentError(msg)
    value = json.loads(data)
    return MemberList(**{**value, "members": tuple(value["members"])})


def product_name_key(run: str, product_name: str, number: int) -> str:
    """Key of the record that says which association had a product name after so many announcements."""
    return f"runs/{run}/product-name-lists/{product_name}/{number}"


async def take_product_name(store: ObjectStore, run: str, members: MemberList) -> str | None:
    """Have a list be the newest of its product name; the association that had it, if that was another.

    The lists of a name are a chain of records, each created once. Of two announcers at once one comes first: the other
    finds its list in the chain and goes behind it, so that both agree which one was last.
    """
    if members.product_name is None:
        return None
    while True:
        number, before = await _newest_list(store, run, members.product_name)
        if before == members.association:
            return None
        key = product_name_key(run, members.product_name, number + 1)
        if await store.put_if_absent(key, canonical_json({"association": members.association})):
            return before


async def superseded_by(store: ObjectStore, run: str, association: str, product_name: str | None) -> str | None:
    """Return the association that has the product name of this one instead; None when it is the newest itself."""
    newest = None if product_name is None else (await _newest_list(store, run, product_name))[1]
    return None if newest == association else newest


async def associations_of(store: ObjectStore, run: str, product_name: str) -> set[str]:
    """Return all associations that had a product name, the one that has it now among them."""
    keys = [info.key async for info in store.list(_chain(run, product_name))]
    chain = [await store.get(key) for key in keys]
    return {json.loads(data)["association"] for data in chain if data is not None}


def _chain(run: str, product_name: str) -> str:
    """Prefix of the keys of a name's chain."""
    return product_name_key(run, product_name, 0).removesuffix("0")


async def _newest_list(store: ObjectStore, run: str, product_name: str) -> tuple[int, str | None]:
    """Length of a name's chain, and which association is its last."""
    prefix = _chain(run, product_name)
    number = max([int(info.key.removeprefix(prefix)) async for info in store.list(prefix)], default=0)
    data = await store.get(product_name_key(run, product_name, number)) if number else None
    return number, None if data is None else json.loads(data)["association"]


async def load_close(store: ObjectStore, run: str, association: str, revision: int) -> Close | None:
    """Read one close; None when there is none of this revision."""
    data = await store.get(close_key(run, association, revision))
    return None if data is None else Close.from_json(json.loads(data))


async def put_close(store: ObjectStore, run: str, close: Close) -> Close:
    """Write a close, or adopt the one that another aggregator wrote for the same revision."""
    if await store.put_if_absent(close_key(run, close.association, close.revision), canonical_json(close.to_json())):
        return close
    winner = await load_close(store, run, close.association, close.revision)
    return winner if winner is not None else close
