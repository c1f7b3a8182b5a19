"""The catalogue of metrics: each declared once, with a sentence on what it means; and the events that feed them.

Documentation and alert rules are checked against this table. No exposure id is ever a label: label values are stages,
classes, outcomes and the like, of which there are few.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from stream.association import CloseReason
from stream.failure import FailureClass

__all__ = ["CATALOGUE", "NAMESPACE", "MetricSpec", "Metrics"]

NAMESPACE = "rampstream"
"""Start of every metric's name as it is exposed."""

_JOB_BUCKETS = (0.1, 0.3, 1.0, 3.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 600.0, 1200.0, 1800.0)
"""Seconds: from a stage of a small frame to the wall limit of a job."""

_OPERATION_BUCKETS = (0.002, 0.005, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 60.0, 600.0)
"""Seconds: from a look-up on a local network to the time limit of a gigabyte."""

_LATENCY_BUCKETS = (10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 21600.0, 86400.0)
"""Seconds: from one exposure on an idle machine to the deadline of an association."""

_RMS_BUCKETS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Milliarcseconds: from a rich field to a fit that should be looked at."""

_WATCHDOG = ("loop", "idle", "unstable", "restore")
_BURIED = tuple(known.value for known in FailureClass if known is not FailureClass.FATAL)


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric: ``kind`` is counter, gauge or histogram; counters are shown with ``_total``.

    ``known`` has all values of a label where they are known beforehand (those of ``segment`` and ``stage`` are what the
    worker serves).
    """

    name: str
    kind: str
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    known: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def exposed(self) -> str:
        """Name as a scrape shows it (a histogram's is followed by ``_bucket``, ``_sum`` and ``_count``)."""
        return f"{NAMESPACE}_{self.name}{'_total' if self.kind == 'counter' else ''}"


CATALOGUE = (
    MetricSpec("job_seconds", "histogram", "Wall time of jobs, by what ran.", ("entry",), _JOB_BUCKETS),
    MetricSpec("stage_seconds", "histogram", "Wall time of stages.", ("stage",), _JOB_BUCKETS),
    MetricSpec("stage_cpu_seconds", "counter", "CPU time of stages.", ("stage",)),
    MetricSpec("message_seconds", "histogram", "From taking a message to its end.", ("segment",), _JOB_BUCKETS),
    MetricSpec("in_flight", "gauge", "Messages taken and not finished.", ("segment",)),
    MetricSpec("slots", "gauge", "Jobs that this worker runs at once."),
    MetricSpec("lag_records", "gauge", "Records that the segment's group has not committed.", ("segment",)),
    MetricSpec("lag_seconds", "gauge", "Age of the oldest record that the group has not committed.", ("segment",)),
    MetricSpec("commit_gap_records", "gauge", "Records taken beyond the offset that may be committed.", ("segment",)),
    MetricSpec("commit_gap_seconds", "gauge", "For how long there has been a gap without a break.", ("segment",)),
    MetricSpec("partitions", "gauge", "Partitions that this worker owns.", ("segment",)),
    MetricSpec("rebalances", "gauge", "Assignments since the worker started.", ("segment",)),
    MetricSpec("loop_lag_seconds", "gauge", "How late the event loop's last tick was."),
    MetricSpec(
        "watchdog_trips",
        "counter",
        "Times a watchdog ended a worker of this work folder.",
        ("reason",),
        known={"reason": _WATCHDOG},
    ),
    MetricSpec(
        "worker_restarts",
        "counter",
        "Earlier workers of this work folder, by how they ended: told to stop, by a watchdog (`loop`, `idle`, "
        "`unstable`, `restore`), a breaker, another failure, or killed without a word.",
        ("reason",),
        known={"reason": ("stopped", *_WATCHDOG, "breaker", "failed", "killed")},
    ),
    MetricSpec(
        "object_operation_seconds",
        "histogram",
        "Time of operations on the object store.",
        ("operation", "outcome"),
        _OPERATION_BUCKETS,
    ),
    MetricSpec("object_bytes", "counter", "Bytes read from and written to the object store.", ("operation",)),
    MetricSpec(
        "cache_requests",
        "counter",
        "Objects asked of the local cache.",
        ("outcome",),
        known={"outcome": ("hit", "miss")},
    ),
    MetricSpec(
        "reference_cache_requests",
        "counter",
        "Reference files and star tables in object storage that a job asked of the local cache.",
        ("outcome",),
    ),
    MetricSpec("stored_bytes", "counter", "Bytes of results written, by the stage whose result it is.", ("stage",)),
    MetricSpec("failed_attempts", "counter", "Failed attempts, and what was done.", ("segment", "class", "action")),
    MetricSpec("dead_letters", "counter", "Records given up.", ("segment", "class"), known={"class": _BURIED}),
    MetricSpec(
        "job_process_restarts",
        "counter",
        "Job processes that were not used again, by reason: recycled after so many jobs, the job failed, was "
        "cancelled, outgrew its memory or wall time, the kernel was out of memory, or the process died.",
        ("reason",),
        known={"reason": ("recycled", "failed", "cancelled", "memory", "wall_time", "oom", "died")},
    ),
    MetricSpec("peak_rss_bytes", "gauge", "Largest resident memory of a job so far."),
    MetricSpec("open_associations", "gauge", "Associations that wait for members."),
    MetricSpec("oldest_association_seconds", "gauge", "Age of the oldest open association."),
    MetricSpec(
        "associations_closed",
        "counter",
        "Closes of associations.",
        ("reason",),
        known={"reason": tuple(CloseReason)},
    ),
    MetricSpec("late_members", "counter", "Members that came or changed after their association's close."),
    MetricSpec("revisions", "counter", "Closes beyond the first of an association."),
    MetricSpec("restore_seconds", "gauge", "Time of the last restore of associations."),
    MetricSpec("solve_seconds", "histogram", "Time of joint solutions.", (), _JOB_BUCKETS),
    MetricSpec("alignment_rms_mas", "histogram", "RMS of aligned exposures.", (), _RMS_BUCKETS),
    MetricSpec("exposure_seconds", "histogram", "From an exposure's arrival to its products.", (), _LATENCY_BUCKETS),
    MetricSpec("results_made", "counter", "Results of stages that were computed.", ("stage",)),
    MetricSpec("results_reused", "counter", "Results of stages that were found.", ("stage",)),
    MetricSpec("results_different", "counter", "Results that differ though input and recipe are equal.", ("stage",)),
    MetricSpec(
        "breaker_trips",
        "counter",
        "Times the segment was stopped, and a worker of this work folder with it, because too much failed.",
        ("segment",),
    ),
    MetricSpec("products_complete", "counter", "Product sets that became visible."),
)

_KINDS: dict[str, Any] = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}


class Metrics:
    """The catalogue as metrics of one worker.

    Parameters
    ----------
    registry : CollectorRegistry, optional
        Where they are registered; a new one by default.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry or CollectorRegistry()
        self._metrics: dict[str, Any] = {}
        for spec in CATALOGUE:
            options = {"buckets": spec.buckets} if spec.buckets else {}
            self._metrics[spec.name] = _KINDS[spec.kind](
                spec.name, spec.meaning, spec.labels, namespace=NAMESPACE, registry=self.registry, **options
            )

    def __getitem__(self, name: str) -> Any:
        """The metric of that name in the catalogue."""
        return self._metrics[name]

    def prepare(self, segments: Mapping[str, Sequence[str]]) -> None:
        """Let every series whose labels are known exist with value 0: the increase from nothing to 1 is not seen.

        Parameters
        ----------
        segments : mapping of str to sequence of str
            The stages of each segment that the worker serves.
        """
        served = {"segment": tuple(segments), "stage": tuple(itertools.chain.from_iterable(segments.values()))}
        for spec in CATALOGUE:
            known = {**served, **spec.known}
            if spec.labels and known.keys() >= set(spec.labels):
                for values in itertools.product(*(known[label] for label in spec.labels)):
                    self._metrics[spec.name].labels(*values)

    def observe(self, event: Mapping[str, Any]) -> None:
        """Take note of one of the engine's events; those that no metric tells of are ignored."""
        handler = _HANDLERS.get(str(event.get("event")))
        if handler is not None:
            handler(self, event)


def _stage(metrics: Metrics, event: Mapping[str, Any]) -> None:
    metrics["stage_seconds"].labels(event["stage"]).observe(event["seconds"])
    metrics["stage_cpu_seconds"].labels(event["stage"]).inc(event.get("cpu_seconds", 0.0))
    metrics["results_made"].labels(event["stage"]).inc()


def _job(metrics: Metrics, event: Mapping[str, Any]) -> None:
    metrics["job_seconds"].labels(event["entry"]).observe(event["seconds"])
    peak = metrics["peak_rss_bytes"]
    peak.set(max(peak._value.get(), event.get("peak_rss_bytes", 0)))  # noqa: SLF001 - a gauge cannot be asked otherwise
    if event["event"] == "job_done" and event["entry"] == "solve":
        metrics["solve_seconds"].observe(event["seconds"])


def _reused(metrics: Metrics, event: Mapping[str, Any]) -> None:
    for stage in event["stages"]:
        metrics["results_reused"].labels(stage).inc()


def _attempt_failed(metrics: Metrics, event: Mapping[str, Any]) -> None:
    metrics["failed_attempts"].labels(event["segment"], event["class"], event["action"]).inc()


def _store(metrics: Metrics, event: Mapping[str, Any]) -> None:
    metrics["object_operation_seconds"].labels(event["operation"], event["outcome"]).observe(event["seconds"])
    metrics["object_bytes"].labels(event["operation"]).inc(event["bytes"])


def _closed(metrics: Metrics, event: Mapping[str, Any]) -> None:
    metrics["associations_closed"].labels(event["reason"]).inc()
    if event["revision"] > 1:
        metrics["revisions"].inc()


def _member(metrics: Metrics, event: Mapping[str, Any]) -> None:
    if event.get("late"):
        metrics["late_members"].inc()


def _worker_ended(metrics: Metrics, event: Mapping[str, Any]) -> None:
    """An earlier worker: what ends a process dies with its counters, and is told by the next one."""
    metrics["worker_restarts"].labels(event["reason"]).inc()
    if event["reason"] in _WATCHDOG:
        metrics["watchdog_trips"].labels(event["reason"]).inc()
    for segment in event.get("segments", ()):
        metrics["breaker_trips"].labels(segment).inc()


def _finalized(metrics: Metrics, event: Mapping[str, Any]) -> None:
    if event.get("latency") is not None:
        metrics["exposure_seconds"].observe(event["latency"])
    if event.get("rms_mas") is not None:
        metrics["alignment_rms_mas"].observe(event["rms_mas"])


_HANDLERS: dict[str, Callable[[Metrics, Mapping[str, Any]], None]] = {
    "stage": _stage,
    "job_done": _job,
    "job_failed": _job,
    "job_process_ended": lambda m, e: m["job_process_restarts"].labels(e["reason"]).inc(),
    "reused": _reused,
    "attempt_failed": _attempt_failed,
    "store": _store,
    "closed": _closed,
    "member": _member,
    "finalized": _finalized,
    "stored": lambda m, e: m["stored_bytes"].labels(e["stage"]).inc(e["bytes"]),
    "cache": lambda m, e: m["cache_requests"].labels(e["outcome"]).inc(),
    "reference_cache": lambda m, e: m["reference_cache_requests"].labels(e["outcome"]).inc(),
    "record_done": lambda m, e: m["message_seconds"].labels(e["segment"]).observe(e["seconds"]),
    "dead_letter": lambda m, e: m["dead_letters"].labels(e["segment"], e["class"]).inc(),
    "worker_ended": _worker_ended,
    "restored": lambda m, e: m["restore_seconds"].set(e["seconds"]),
    "results_differ": lambda m, e: m["results_different"].labels(e["stage"]).inc(),
    "products": lambda m, _: m["products_complete"].inc(),
}
