"""A pipeline of toys: stages on small arrays, a payload format in npy files, references that are numbers."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stream.failure import PermanentError
from stream.stage import Facts, Slot, StageParameters, StageResult


@dataclass
class ToyItem:
    arrays: dict[str, np.ndarray]
    meta: dict[str, Any] = field(default_factory=dict)
    logs: list[str] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=dict)
    ties: bytes | None = None

    def change(self, name: str) -> np.ndarray:
        self.versions[name] = self.versions.get(name, 0) + 1
        return self.arrays[name]


class ToyPayload:
    """Counts what it writes."""

    def __init__(self) -> None:
        self.saved: list[str] = []

    def load_input(self, path: Path, facts: Facts) -> ToyItem:
        data = np.load(path)
        return ToyItem({"data": data, "dq": np.zeros(data.shape, np.uint8)}, {"filename": path.name})

    def load(self, tree: Path, arrays: Mapping[str, Path]) -> ToyItem:
        document = json.loads(tree.read_text())
        ties = document["ties"]
        return ToyItem(
            {name: np.load(path, mmap_mode="c") for name, path in arrays.items()},
            document["meta"],
            document["logs"],
            ties=None if ties is None else bytes.fromhex(ties),
        )

    def save_tree(self, item: ToyItem, path: Path) -> None:
        ties = None if item.ties is None else item.ties.hex()
        path.write_text(json.dumps({"meta": item.meta, "logs": item.logs, "ties": ties}))

    def array_names(self, item: ToyItem) -> Iterable[str]:
        return tuple(item.arrays)

    def save_array(self, item: ToyItem, name: str, path: Path) -> None:
        self.saved.append(name)
        with path.open("wb") as file:
            np.save(file, item.arrays[name])

    def array_token(self, item: ToyItem, name: str) -> Any:
        return item.versions.get(name)

    def side_objects(self, item: ToyItem) -> Mapping[str, bytes]:
        return {} if item.ties is None else {"tie_points": item.ties}

    def facts(self, item: ToyItem) -> Facts:
        return {"mean": float(np.mean(item.arrays["data"]))}

    @contextmanager
    def collect_logs(self, item: ToyItem) -> Iterator[None]:
        class Lines(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                item.logs.append(record.getMessage())

        handler = Lines()
        logger = logging.getLogger("stages")
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)

    def content_digest(self, item: ToyItem) -> str:
        return hashlib.sha256(json.dumps(item.meta, sort_keys=True).encode()).hexdigest()


class ToyReferences:
    """``{type: value}``; its name is its value."""

    def __init__(self, **values: float | None) -> None:
        self.values = values
        self.released: list[float] = []

    def select(self, reference_type: str, facts: Facts) -> str | None:
        if reference_type not in self.values:
            msg = f"no {reference_type} for {facts['detector']}"
            raise PermanentError(msg)
        value = self.values[reference_type]
        return None if value is None else str(value)

    def digest(self, name: str) -> str:
        return hashlib.sha256(name.encode()).hexdigest()

    def open(self, name: str) -> float:
        return float(name)

    def release(self, opened: Sequence[float]) -> None:
        self.released += opened


class ToyParameters(StageParameters):
    by: float = 1.0


class ToyStage:
    """Adds ``by``, times its reference, to the data."""

    version = "1"
    parameters_type = ToyParameters
    libraries = ("numpy",)

    def __init__(self, name: str, *, references: tuple[str, ...] = (), branches: Iterable[str] = ("image",)) -> None:
        self.name = name
        self.reference_types = references
        self.branches = frozenset(branches)
        self.runs = 0

    def references_for(self, facts: Facts, parameters: Any) -> Sequence[str]:
        return () if parameters.skip else self.reference_types

    def run(self, item: ToyItem, references: Mapping[str, Any], parameters: Any, slot: Slot) -> StageResult:
        self.runs += 1
        logging.getLogger(f"stages.{self.name}").warning("%s ran", self.name)
        item.meta[self.name] = "done"
        return StageResult(item, self.work(item, references, parameters))

    def work(self, item: ToyItem, references: Mapping[str, Any], parameters: Any) -> str | None:
        factor = references.get("gain") or 1.0
        item.change("data")[:] += np.float32(parameters.by * factor)
        return None


class Flag(ToyStage):
    def work(self, item: ToyItem, references: Mapping[str, Any], parameters: Any) -> str | None:
        item.change("dq")[item.arrays["data"] > 5] |= 2
        return "saturated" if item.arrays["dq"].all() else None


class Catalog(ToyStage):
    def work(self, item: ToyItem, references: Mapping[str, Any], parameters: Any) -> str | None:
        item.ties = item.arrays["data"].tobytes()[:16]
        return None


class Broken(ToyStage):
    def work(self, item: ToyItem, references: Mapping[str, Any], parameters: Any) -> str | None:
        msg = "frame x has no meta.exposure.type"
        raise PermanentError(msg)


def toy_stages() -> list[ToyStage]:
    return [
        ToyStage("offset", references=("gain",), branches=("image", "dark")),
        Flag("flag", branches=("image", "dark")),
        ToyStage("shift"),
        Catalog("catalog"),
    ]
