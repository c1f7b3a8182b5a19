"""Alert rules ask for metrics and labels that exist, and fire when they should and not before."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream.metrics import CATALOGUE, Metrics

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((DEPLOY / "prometheus" / "rules.yaml").read_text())["groups"]
    for rule in group["rules"]
]  # fmt: skip
SERIES = {
    spec.exposed + part: spec
    for spec in CATALOGUE
    for part in (("_bucket", "_sum", "_count") if spec.kind == "histogram" else ("",))
}
SERVED = {"ramp_fit": ("ramp_fit", "dark_current"), "tweakreg": ("tweakreg",)}


@pytest.fixture(scope="module")
def promtool() -> str:
    script = [sys.executable, DEPLOY / "local" / "prometheus", "promtool"]
    found = subprocess.run(script, check=False, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_a_rule_asks_for_series_and_labels_of_the_catalogue(rule: dict[str, Any]) -> None:
    names = set(re.findall(r"\brampstream_\w+", rule["expr"]))
    assert names
    assert names - SERIES.keys() == set()
    by = {label.strip() for labels in re.findall(r"\bby \(([^)]*)\)", rule["expr"]) for label in labels.split(",")}
    told = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    assert told <= by
    for name in names:
        selected = set(re.findall(rf"{name}{{(\w+)[=!]", rule["expr"]))
        assert by | selected <= set(SERIES[name].labels), name


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_a_series_that_a_rule_asks_for_exists_from_the_start_with_value_0(rule: dict[str, Any]) -> None:
    metrics = Metrics()
    metrics.prepare(SERVED)
    samples = [sample for family in metrics.registry.collect() for sample in family.samples]
    for name in set(re.findall(r"\brampstream_\w+", rule["expr"])):
        values = [sample.value for sample in samples if sample.name == name]
        assert values, name
        assert set(values) == {0.0}, name
        if "segment" in SERIES[name].labels:
            assert {s.labels["segment"] for s in samples if s.name == name} == SERVED.keys()


def test_the_rules_are_well_formed_and_fire_when_they_should(promtool: str) -> None:
    for command in (("check", "rules", "rules.yaml"), ("test", "rules", "rules_test.yaml")):
        done = subprocess.run(
            [promtool, *command], cwd=DEPLOY / "prometheus", check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "SUCCESS" in done.stdout
