"""Opens the broker and the store that settings name, and reads what a run is. The distributed verbs begin here."""

from __future__ import annotations

import argparse
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops.settings import RunSettings, load_settings, parse_assignment, parse_reference_pin
from ops.table import Pipeline, defined_pipeline
from stream.broker.protocol import Broker
from stream.failure import FatalError, PermanentError
from stream.identity import canonical_json
from stream.results import Results
from stream.run_records import RunRecords
from stream.store import ObjectStore, probe_put_if_absent
from stream.store.measured import MeasuredStore
from stream.store.obstore_store import open_store

__all__ = ["Connection", "RunView", "add_engine_arguments", "connected", "engine_settings", "layout_key", "view_run"]


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a verb the options that say which run, broker and store it works on."""
    parser.add_argument("--run", metavar="RUN", help="the run (default: prompt)")
    parser.add_argument("--broker", metavar="URL", help="kafka://HOST:PORT[,…] or embedded:[DIR]")
    parser.add_argument("--store", metavar="URL", help="s3://BUCKET/PREFIX, gs://…, az://… or a folder")
    parser.add_argument("--work", type=Path, metavar="DIR", help="this process's folder for caches, scratch and logs")
    parser.add_argument("--config", type=Path, metavar="FILE.toml", help="settings; variables and options win over it")


def engine_settings(options: argparse.Namespace, **more: Any) -> RunSettings:
    """Merge file, environment and a verb's options.

    Raises
    ------
    PermanentError
        A value is wrong, or no store is named.
    """
    names = ("run", "broker", "store", "work", "preset", "slots", "threads", "partitions", "health")
    given: dict[str, Any] = {
        name: value for name in names if (value := getattr(options, name, None)) is not None
    } | more
    for text in getattr(options, "assignments", ()):
        stage, parameter, value = parse_assignment(text)
        given.setdefault("parameters", {}).setdefault(stage, {})[parameter] = value
    if getattr(options, "parameters", ()):
        given["parameter_files"] = tuple(options.parameters)
    if getattr(options, "pins", ()):
        given["references"] = dict(parse_reference_pin(text) for text in options.pins)
    settings = load_settings(options.config, given)
    if not settings.store:
        raise PermanentError("no store is named: say --store s3://BUCKET/PREFIX (or a folder), or set RAMPSTREAM_STORE")
    return settings


@dataclass(frozen=True, slots=True)
class Connection:
    """An open broker and store, with the settings that named them."""

    settings: RunSettings
    broker: Broker
    store: ObjectStore

    @property
    def results(self) -> Results:
        """The results in the store."""
        return Results(self.store)

    @property
    def records(self) -> RunRecords:
        """The records of the run."""
        return RunRecords(self.store, self.settings.run)


def open_broker(settings: RunSettings) -> Any:
    """Make the broker that the settings name; to be entered as a context.

    Raises
    ------
    PermanentError
        The location cannot be understood.
    """
    location = settings.broker
    if location.startswith("kafka://"):
        from stream.broker.kafka import KafkaBroker
        from stream.broker.kafka_settings import KafkaTimings

        timings = KafkaTimings(session_seconds=settings.session_seconds)
        return KafkaBroker.from_url(location, timings=timings, replication=settings.replication)
    if location.startswith("embedded:"):
        from stream.broker.embedded import EmbeddedBroker

        folder = location.removeprefix("embedded:")
        return EmbeddedBroker(Path(folder) if folder else settings.work / "log")
    raise PermanentError(f"broker {location!r}: expected kafka://HOST:PORT[,HOST:PORT…] or embedded:[DIR]")


@asynccontextmanager
async def connected(
    settings: RunSettings, observe: Callable[[dict[str, Any]], None] | None = None
) -> AsyncIterator[Connection]:
    """Open broker and store (measured, if someone observes); a store that ignores put-if-absent is refused."""
    store: ObjectStore = open_store(settings.store)
    if observe is not None:
        store = MeasuredStore(store, observe)
    await probe_put_if_absent(store)
    async with open_broker(settings) as broker:
        yield Connection(settings, broker, store)


def layout_key(run: str) -> str:
    """Key of the object that says how a run's topics are laid out: what an operator may change in its life."""
    return f"runs/{run}/layout"


@dataclass(frozen=True, slots=True)
class RunView:
    """A run as it is defined and laid out."""

    definition: dict[str, Any]
    layout: dict[str, Any]
    pipeline: Pipeline
    settings: RunSettings

    @property
    def retry_tiers(self) -> int:
        """Number of retry topics of each segment."""
        return len(self.layout["retry_seconds"])


async def view_run(connection: Connection, preset: str | None = None) -> RunView:
    """Read what a run is.

    Parameters
    ----------
    connection : Connection
        Where.
    preset : str, optional
        Refused when the run's topics are laid out by another.

    Raises
    ------
    FatalError
        The run is not defined.
    PermanentError
        The preset is another one.
    """
    settings = connection.settings
    definition = await connection.records.definition()
    laid_out = await connection.store.get(layout_key(settings.run))
    if definition is None or laid_out is None:
        msg = (
            f"the run {settings.run!r} is not set up in {settings.store}: "
            f"say rampstream topics apply --run {settings.run} --references … --gaia … first"
        )
        raise FatalError(msg)
    layout: dict[str, Any] = json.loads(laid_out)
    if preset is not None and preset != layout["preset"]:
        msg = (
            f"the topics of run {settings.run!r} are laid out by the preset {layout['preset']!r}, not {preset!r}; "
            f"say rampstream topics apply --run {settings.run} --preset {preset} once its inboxes are "
            "empty and its workers stopped"
        )
        raise PermanentError(msg)
    chosen = settings.model_copy(
        update={
            "preset": layout["preset"],
            "spread": layout["spread"],
            "retry_seconds": tuple(layout["retry_seconds"]),
        }
    )
    return RunView(definition, layout, defined_pipeline(definition, chosen), chosen)


async def put_layout(store: ObjectStore, run: str, layout: dict[str, Any]) -> None:
    """Say how a run's topics are laid out."""
    await store.put(layout_key(run), canonical_json(layout))
