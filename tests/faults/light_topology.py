"""Stages, timings and topology of the light pipeline. Not its workers: who only needs these starts in a second less."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

from stream.broker.kafka_settings import KafkaTimings
from stream.message import MemberStatus
from stream.results import Manifest
from stream.topology import Segments, StageRow, Topology

__all__ = [
    "BRANCH",
    "JOINT",
    "JOINT_BRANCH",
    "LAST",
    "SESSION",
    "STAGES",
    "TIMINGS",
    "configured",
    "segments",
    "status_of",
]

BRANCH = "x"
STAGES = ("first", "second")
JOINT_BRANCH, JOINT, LAST = "y", "joint", "last"
SESSION = 3.0
TIMINGS = KafkaTimings(
    session_seconds=SESSION, heartbeat_seconds=0.4, revoke_seconds=2.0, rebalance_seconds=5.0, request_seconds=8.0
)


def segments() -> Segments:
    # Nothing of the first branch goes to the joint stage: each branch is for other tests.
    rows = [StageRow(name, frozenset({BRANCH})) for name in STAGES]
    joint = frozenset({JOINT_BRANCH})
    return Topology([*rows, StageRow(JOINT, joint, joint=True), StageRow(LAST, joint)]).segments("granular")


def status_of(_: Manifest) -> MemberStatus:
    raise AssertionError("nothing goes from a stage to the joint one here")


def configured(kind: Any) -> Any:
    """The configuration that this process is given in a file, once its work folder is there and has its log."""
    config = kind(**json.loads(Path(sys.argv[1]).read_text()))
    Path(config.work).mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        filename=Path(config.work) / "log", level=logging.INFO, format="%(asctime)s %(name)s %(message)s"
    )
    return config
