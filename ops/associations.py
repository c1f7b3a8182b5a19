"""``rampstream associations list|show|close|reopen``: who has come, who is waited for, and an operator's say in it.

Listing reads store and changelog, and needs no running aggregator. Closing and reopening are orders to the aggregator
that has the association: a message among those of its members.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from collections.abc import Mapping
from typing import Any

import anyio
from rich.console import Console
from rich.table import Table

from ops.association_state import AssociationView, association_views, tell_with_reasons, without_products
from ops.connect import Connection, RunView, add_engine_arguments, connected, engine_settings, view_run
from ops.engine import status_of
from stream.clock import SystemClock
from stream.failure import PermanentError
from stream.message import OrderAction, OrderMessage
from stream.router import Router

__all__ = ["add_arguments", "planned_order"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the verb its options."""
    parser.add_argument("action", choices=("list", "show", "close", "reopen"), help="what to do")
    parser.add_argument("associations", nargs="*", metavar="ID", help="id as listed, or product name (with *)")
    parser.add_argument("--open", action="store_true", help="list: only those that are not closed")
    parser.add_argument("--execute", action="store_true", help="close, reopen: do it, not only say what would be done")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_engine_arguments(parser)
    parser.set_defaults(handle=run_verb)


def run_verb(options: argparse.Namespace) -> int:
    """List, show, or order."""
    if options.action != "list" and not options.associations:
        raise PermanentError(f"say which associations to {options.action}: their ids, or product names")
    return anyio.run(_run, options)


async def _run(options: argparse.Namespace) -> int:
    settings = engine_settings(options)
    async with connected(settings) as connection:
        view = await view_run(connection)
        found = await association_views(connection, view)
        _refuse_unknown(options.associations, found, settings.run)
        chosen = [one for one in found if _wanted(one, options)]
        lacking = await without_products(connection, chosen)
        if options.action in {"close", "reopen"}:
            shown = [await _ordered(connection, view, one, lacking[one.id], options) for one in chosen]
        elif options.action == "show":
            shown = [await tell_with_reasons(connection, one, lacking[one.id]) for one in chosen]
        else:
            shown = [one.to_json(lacking[one.id]) for one in chosen]
    if options.json:
        sys.stdout.write(json.dumps(shown) + "\n")
    elif options.action == "list":
        _show_table(settings.run, shown)
    elif options.action == "show":
        sys.stdout.write("".join(json.dumps(one, indent=2) + "\n" for one in shown))
    else:
        _show_orders(shown, executed=options.execute)
    return 0


def _named(view: AssociationView, pattern: str) -> bool:
    return any(name is not None and fnmatch.fnmatchcase(name, pattern) for name in (view.id, view.members.product_name))


def _refuse_unknown(patterns: list[str], found: list[AssociationView], run: str) -> None:
    unknown = [pattern for pattern in patterns if not any(_named(view, pattern) for view in found)]
    if unknown:
        raise PermanentError(f"there is no association {', '.join(unknown)} in run {run}")


def _wanted(view: AssociationView, options: argparse.Namespace) -> bool:
    if options.associations and not any(_named(view, pattern) for pattern in options.associations):
        return False
    return not options.open or view.is_open


def planned_order(
    view: AssociationView, action: OrderAction, run: str, lacking: Mapping[str, str]
) -> OrderMessage | str:
    """Return the order that would be given, or why there is nothing to do.

    An association may be opened again when something changed, or when members are ``lacking`` products.
    """
    last = view.state.last_close
    if view.state.superseded_by is not None:
        return f"it is superseded by {view.state.superseded_by}, a newer list of its product name"
    if action is OrderAction.CLOSE:
        if last is not None:
            return f"it is closed with revision {last.revision}: reopen opens another one"
        if not view.state.records():
            return "no member has come"
    elif last is None:
        return "it is not closed yet"
    elif not view.state.changed and not lacking:
        return f"nothing changed since revision {last.revision}"
    return OrderMessage(run=run, association=view.id, action=action, revision=1 + (last.revision if last else 0))


async def _ordered(
    connection: Connection,
    view: RunView,
    one: AssociationView,
    lacking: Mapping[str, str],
    options: argparse.Namespace,
) -> dict[str, Any]:
    order = planned_order(one, OrderAction(options.action), connection.settings.run, lacking)
    told: dict[str, Any] = {"association": one.id, "action": options.action, "ordered": False}
    if isinstance(order, str):
        return {**told, "revision": None, "reason": order}
    close = one.state.close_by_operator(again=True)
    told |= {
        "revision": order.revision,
        "reason": None,
        "outcome": close.outcome.value,
        "used": list(close.used),
        "without": [member for member in close.expected if member not in close.used],
    }
    if options.execute:
        router = Router(
            broker=connection.broker,
            segments=view.pipeline.segments,
            run=connection.settings.run,
            status_of=status_of,
            clock=SystemClock(),
        )
        await router.send_member(order)
        told["ordered"] = True
    return told


def _show_table(run: str, shown: list[dict[str, Any]]) -> None:
    table = Table(title=f"associations of run {run}")
    for column in ("association", "expected", "came", "waited for", "since", "until", "revision", "closed", "changes"):
        table.add_column(column, justify="left" if column in {"association", "since", "until", "closed"} else "right")
    table.add_column("products")
    for one in shown:
        came = ", ".join(f"{count} {status}" for status, count in one["present"].items())
        closed = one["closed"] or "open"
        if one["superseded_by"] is not None:
            closed = "superseded" if one["closed"] is None else f"{closed}, superseded"
        numbers = (str(one["revision"]), closed, str(one["changes"]))
        times = (one["since"] or "", one["until"] or "")
        complete = "complete" if one["complete"] else ""
        if one["without_products"]:
            complete = f"{one['without_products']} without"
        table.add_row(
            one["association"], str(one["expected"]), came, str(one["waited_for"]), *times, *numbers, complete
        )
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _show_orders(shown: list[dict[str, Any]], *, executed: bool) -> None:
    for one in shown:
        if one["revision"] is None:
            sys.stdout.write(f"{one['association']}: nothing to {one['action']}: {one['reason']}\n")
            continue
        done = "ordered" if one["ordered"] else "would be ordered"
        align = "align" if one["outcome"] == "align" else "not align, for that are too few,"
        lacking = f", without {', '.join(one['without'])}" if one["without"] else ""
        sys.stdout.write(
            f"{one['association']}: revision {one['revision']} {done}: "
            f"{align} {len(one['used'])} of {len(one['used']) + len(one['without'])} members{lacking}\n"
        )
    if not executed and any(one["revision"] is not None for one in shown):
        sys.stdout.write("say --execute to do it\n")
