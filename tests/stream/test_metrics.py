"""The catalogue is fed by events: what happens is counted once, and what has not happened is 0."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import anyio
import pytest

from stream.jobs import Job
from stream.metrics import CATALOGUE, Metrics
from stream.process_runner import ProcessJobRunner
from tests.contract.jobs_suite import gone

TOY = "tests.stream.toy_jobs"


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"rampstream_{name}", labels)


def test_names_say_their_unit_and_no_metric_is_declared_twice() -> None:
    names = [spec.name for spec in CATALOGUE]
    assert len(set(names)) == len(names)
    assert not [name for name in names if name.endswith("_total")]
    assert {spec.name.rpartition("_")[2] for spec in CATALOGUE if spec.buckets} <= {"seconds", "mas"}
    assert all(spec.buckets for spec in CATALOGUE if spec.kind == "histogram")
    assert all(set(spec.known) <= set(spec.labels) for spec in CATALOGUE)


def test_what_has_not_happened_is_0_for_what_the_worker_serves() -> None:
    metrics = Metrics()
    assert value(metrics, "dead_letters_total", segment="ramp_fit", **{"class": "poison"}) is None
    metrics.prepare({"ramp_fit": ("ramp_fit", "dark_current")})
    assert value(metrics, "dead_letters_total", segment="ramp_fit", **{"class": "poison"}) == 0
    assert value(metrics, "results_made_total", stage="dark_current") == 0
    assert value(metrics, "message_seconds_count", segment="ramp_fit") == 0
    assert value(metrics, "message_seconds_count", segment="dark_current") is None


def test_what_ended_earlier_workers_is_counted_by_the_next() -> None:
    metrics = Metrics()
    metrics.prepare({"photom": ("photom",)})
    for reason, segments in (("loop", []), ("killed", []), ("breaker", ["photom"]), ("killed", [])):
        metrics.observe({"event": "worker_ended", "reason": reason, "segments": segments})
    assert value(metrics, "worker_restarts_total", reason="killed") == 2
    assert value(metrics, "worker_restarts_total", reason="loop") == 1
    assert value(metrics, "watchdog_trips_total", reason="loop") == 1
    assert value(metrics, "watchdog_trips_total", reason="idle") == 0
    assert value(metrics, "breaker_trips_total", segment="photom") == 1


def test_the_largest_memory_of_a_job_counts_also_when_the_job_failed() -> None:
    metrics = Metrics()
    for event, peak in (("job_done", 5), ("job_failed", 9), ("job_done", 7)):
        metrics.observe({"event": event, "entry": "execute", "seconds": 1.0, "peak_rss_bytes": peak})
    assert value(metrics, "peak_rss_bytes") == 9
    assert value(metrics, "job_seconds_count", entry="execute") == 3


@pytest.mark.anyio
async def test_each_job_process_that_is_not_used_again_is_counted_once_by_its_reason(tmp_path: Path) -> None:
    metrics = Metrics()
    metrics.prepare({})
    told: list[dict[str, Any]] = []

    def observe(event: dict[str, Any]) -> None:
        told.append(event)
        metrics.observe(event)

    def job(name: str, **more: Any) -> Job:
        arguments = more.pop("arguments", {})
        return Job(f"{TOY}:{name}", arguments, **{"wall_seconds": 60.0, **more})

    async with ProcessJobRunner(slots=1, log_dir=tmp_path, recycle_after=2, observe=observe) as runner:
        for _ in range(2):
            await runner.run(job("echo"))  # the second one fills the measure
        await runner.run(job("fail", arguments={"kind": "other"}))
        await runner.run(job("sleep", wall_seconds=0.3))
        pid = (await runner.run(job("echo"))).result["pid"]
        os.kill(pid, signal.SIGKILL)
        assert await gone(pid)
        await anyio.sleep(0.1)
        await runner.run(job("echo"))
        with anyio.move_on_after(0.3):
            await runner.run(job("sleep"))
    assert [event["reason"] for event in told] == ["recycled", "failed", "wall_time", "died", "cancelled"]
    assert value(metrics, "job_process_restarts_total", reason="recycled") == 1
    assert value(metrics, "job_process_restarts_total", reason="oom") == 0
