"""The page of metrics, made from the catalogue in `stream.metrics`. Measures nothing."""

from __future__ import annotations

from collections.abc import Iterable

from stream.metrics import CATALOGUE, MetricSpec

__all__ = ["metrics_page"]

_HEAD = """\
# Metrics

What a worker shows at `/metrics` (`--health HOST:PORT`), in Prometheus' text format. Made from `stream/metrics.py` by
`python -m ops.generated_docs`; do not edit it.

Series whose labels are known (the segments and stages that a worker serves, classes, reasons) exist from its start with
value 0. Each worker tells the lag of a whole group, so take the maximum over workers, not the sum. A watchdog or a
breaker ends the process before it can be scraped: `logs/endings.log` in the work folder remembers, and the next worker
with this folder counts it. No exposure id is ever a label.

| metric | kind | labels | unit | meaning |
|---|---|---|---|---|
"""

_UNITS = {"seconds": "seconds", "bytes": "bytes", "mas": "milliarcseconds", "records": "records"}


def metrics_page(catalogue: Iterable[MetricSpec] = CATALOGUE) -> str:
    """Make the page."""
    specs = list(catalogue)
    rows = "".join(
        f"| `{spec.exposed}` | {spec.kind} | {', '.join(f'`{label}`' for label in spec.labels)} | {_unit(spec)} "
        f"| {spec.meaning} |\n"
        for spec in specs
    )
    return f"{_HEAD}{rows}\n{_buckets(specs)}\n{_values(specs)}"


def _unit(spec: MetricSpec) -> str:
    return _UNITS.get(spec.name.rpartition("_")[2], "")


def _buckets(specs: Iterable[MetricSpec]) -> str:
    head = "## Buckets\n\nUpper edges, in the metric's unit; the last is open.\n\n| metric | edges |\n|---|---|\n"
    return head + "".join(
        f"| `{spec.exposed}` | {', '.join(f'{edge:g}' for edge in spec.buckets)} |\n" for spec in specs if spec.buckets
    )


def _values(specs: Iterable[MetricSpec]) -> str:
    rows = "".join(
        f"| `{spec.exposed}` | `{label}` | {', '.join(f'`{value}`' for value in values)} |\n"
        for spec in specs
        for label, values in spec.known.items()
    )
    return f"## Values of labels\n\n| metric | label | values |\n|---|---|---|\n{rows}"
