"""``rampstream dlq list|show|redrive``: what no attempt could help, why, and once the cause is gone, once more.

Redriving publishes key, value and headers as they were to the inbox where the record failed, and forgets its attempts;
a mark in the store says so, for a log cannot be edited.
"""

from __future__ import annotations

import argparse
import base64
import fnmatch
import json
import sys
from typing import Any

import anyio

from ops.connect import Connection, add_engine_arguments, connected, engine_settings
from stream.broker.protocol import NOT_BEFORE, Record
from stream.clock import SystemClock
from stream.dead_letters import PREFIX, reasons
from stream.failure import PermanentError, PoisonError
from stream.identity import canonical_json
from stream.message import MemberMessage, Message, OrderMessage, decode
from stream.run_records import Attempts
from stream.topology import dead_letter_topic_name

__all__ = ["add_arguments", "dead_letters", "redrive"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the verb its options."""
    parser.add_argument("action", choices=("list", "show", "redrive"), help="what to do")
    parser.add_argument("letters", nargs="*", metavar="LETTER", help="PARTITION-OFFSET as listed, or exposure (with *)")
    parser.add_argument("--stage", help="only those that failed at this stage")
    parser.add_argument("--class", dest="failure_class", help="only those of this class of failure")
    parser.add_argument("--all", action="store_true", help="list also those that were redriven")
    parser.add_argument("--execute", action="store_true", help="redrive: do it, not only say what would be done")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_engine_arguments(parser)
    parser.set_defaults(handle=run_verb)


def run_verb(options: argparse.Namespace) -> int:
    """List, show or redrive; 1 when something was named that is not there."""
    return anyio.run(_run, options)


async def _run(options: argparse.Namespace) -> int:
    settings = engine_settings(options)
    async with connected(settings) as connection:
        found = await dead_letters(connection)
        chosen = [letter for letter in found if _wanted(letter, options)]
        unknown = [name for name in options.letters if not any(_named(letter, name) for letter in found)]
        if unknown:
            raise PermanentError(f"there is no dead letter {', '.join(unknown)} in run {settings.run}")
        if options.action == "redrive":
            chosen = [letter for letter in chosen if not letter["redriven"]]
            if not (options.letters or options.stage or options.failure_class):
                raise PermanentError("say which dead letters to redrive: their ids, an exposure, --stage or --class")
            if options.execute:
                for letter in chosen:
                    letter["redriven_to"] = await redrive(connection, letter)
        shown = [letter if options.action == "show" else _brief(letter) for letter in chosen]
    if options.json:
        sys.stdout.write(json.dumps(shown) + "\n")
    else:
        for letter in shown:
            sys.stdout.write(_line(letter) if options.action != "show" else json.dumps(letter, indent=2) + "\n")
        if options.action == "redrive" and not chosen:
            sys.stdout.write("nothing to redrive: no dead letter matches (--all: those redriven before as well)\n")
        elif options.action == "redrive" and not options.execute:
            sys.stdout.write(f"{len(chosen)} would be redriven; say --execute to do it\n")
    return 0


def _mark(run: str, letter: str) -> str:
    return f"runs/{run}/dead-letters/{letter}"


async def dead_letters(connection: Connection) -> list[dict[str, Any]]:
    """All dead letters of the run, oldest first, as JSON values."""
    run, broker = connection.settings.run, connection.broker
    topic = dead_letter_topic_name(run)
    if topic not in await broker.topics():
        return []
    prefix = _mark(run, "")
    marked = {info.key.removeprefix(prefix) async for info in connection.store.list(prefix)}
    found = []
    for partition, (first, end) in sorted((await broker.extents(topic)).items()):
        found += [_described(record, marked) for record in await broker.read(topic, partition, first, end)]
    return found


def _described(record: Record, marked: set[str]) -> dict[str, Any]:
    why = reasons(record)
    letter = f"{record.partition}-{record.offset}"
    try:
        message = decode(record)
    except PoisonError:
        message = None
    exposure = None
    value = record.value or b""
    if message is None:
        exposure = _exposure_of(value)
    elif not isinstance(message, OrderMessage):
        exposure = message.member if isinstance(message, MemberMessage) else message.exposure
    try:
        text: str | None = value.decode()
    except UnicodeDecodeError:
        text = None
    return {
        "letter": letter,
        "exposure": exposure,
        "stage": why.get("stage"),
        "topic": why.get("topic"),
        "class": why.get("class"),
        "attempts": int(why.get("attempts", 0) or 0),
        "software": why.get("software"),
        "buried_ms": record.timestamp_ms,
        "reason": _failure(why).get("message"),
        "failure": _failure(why),
        "redriven": letter in marked,
        "key": None if record.key is None else base64.b64encode(record.key).decode(),
        "value": text,
        "value_base64": None if text is not None else base64.b64encode(value).decode(),
        "headers": [
            [name, base64.b64encode(content).decode()]
            for name, content in record.headers
            if not name.startswith(PREFIX)
        ],
    }


def _exposure_of(value: bytes) -> str | None:
    """Name of the exposure in a message that cannot be read as one: of another version, say."""
    try:
        document = json.loads(value)
    except ValueError:
        return None
    named = document.get("exposure", document.get("member")) if isinstance(document, dict) else None
    return named if isinstance(named, str) else None


def _failure(why: dict[str, str]) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(why.get("failure", "{}"))
    except ValueError:
        return {}
    return found


async def redrive(connection: Connection, letter: dict[str, Any]) -> str:
    """Publish a dead letter's record again where it failed; returns the topic."""
    run = connection.settings.run
    topic = str(letter["topic"])
    topic = topic if ".retry-" not in topic else topic.rpartition(".retry-")[0]
    partition, _, offset = str(letter["letter"]).partition("-")
    first = int(offset)
    [record] = await connection.broker.read(dead_letter_topic_name(run), int(partition), first, first + 1)
    try:
        message = decode(record)
    except PoisonError:
        message = None
    if isinstance(message, Message):
        attempts = Attempts(connection.store, run=run, worker="redrive", clock=SystemClock())
        await attempts.clear(message.exposure, message.stage)
    own = tuple((name, value) for name, value in record.headers if not name.startswith(PREFIX) and name != NOT_BEFORE)
    await connection.broker.publish(topic, key=record.key, value=record.value, headers=own)
    await connection.store.put(_mark(run, str(letter["letter"])), canonical_json({"at": SystemClock().now()}))
    return topic


def _named(letter: dict[str, Any], name: str) -> bool:
    return letter["letter"] == name or fnmatch.fnmatchcase(str(letter["exposure"]), name)


def _wanted(letter: dict[str, Any], options: argparse.Namespace) -> bool:
    if options.letters and not any(_named(letter, name) for name in options.letters):
        return False
    if options.stage is not None and letter["stage"] != options.stage:
        return False
    if options.failure_class is not None and letter["class"] != options.failure_class:
        return False
    return options.all or options.action == "show" or not letter["redriven"]


def _brief(letter: dict[str, Any]) -> dict[str, Any]:
    left_out = {"key", "value", "value_base64", "headers", "failure"}
    return {name: value for name, value in letter.items() if name not in left_out}


def _line(letter: dict[str, Any]) -> str:
    done = f" → {letter['redriven_to']}" if "redriven_to" in letter else " (redriven)" if letter["redriven"] else ""
    return (
        f"{letter['letter']}  {letter['exposure'] or '-'}  {letter['stage']}  {letter['class']}  "
        f"{letter['attempts']} attempts  {letter['reason']}{done}\n"
    )
