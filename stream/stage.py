"""The protocols in which the engine and the science meet. Not an implementation of either.

A stage is a function of its arguments only, without I/O: the engine reads and writes payloads, opens references and
keeps the results. A stage may overwrite the arrays that it is handed. What flows through stages (the *item*) is opaque
to the engine, which only asks the `PayloadFormat` to load and save it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "Facts",
    "Item",
    "JointStage",
    "Member",
    "PayloadFormat",
    "ReferenceSource",
    "Slot",
    "Stage",
    "StageParameters",
    "StageResult",
]

Item = Any
"""What flows through stages; opaque to the engine."""

Facts = dict[str, Any]
"""Small JSON values about an item that travel in messages (opaque to the engine)."""


class StageParameters(BaseModel):
    """Base of every stage's parameters: immutable, and unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    skip: bool = Field(default=False, description="Leave the exposure unchanged and mark the stage SKIPPED.")

    def named_files(self) -> tuple[str, ...]:
        """Paths of files that parameters name and the stage reads: their content is part of the recipe."""
        return ()


@dataclass(slots=True)
class Slot:
    """What a job may use: threads for compiled kernels, a folder for logs, and buffers that outlive one job.

    ``scratch`` keeps allocated memory between stages and jobs (first touch of fresh memory is expensive); stages ask
    for it through their own helper and must treat its contents as undefined.
    """

    threads: int = 1
    scratch: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage returns: the item and, where the stage decides so, another branch of the topology."""

    item: Item
    branch: str | None = None


@runtime_checkable
class Stage(Protocol):
    """One calibration step on one exposure.

    Attributes
    ----------
    name : str
        Unique; also the name of the topic and of the parameter table.
    version : str
        Bumped whenever equal input may give other numbers: part of the recipe.
    parameters_type : type of StageParameters
        All parameters with their defaults.
    reference_types : tuple of str
        Every reference type the stage may ask for; each enters the recipe by digest, or as N/A.
    libraries : tuple of str
        Distributions whose version may change the numbers: part of the recipe.
    branches : frozenset of str
        The branches (exposure types, or one that a stage set) on which the stage runs.
    """

    name: str
    version: str
    parameters_type: type[StageParameters]
    reference_types: tuple[str, ...]
    libraries: tuple[str, ...]
    branches: frozenset[str]

    def references_for(self, facts: Facts, parameters: Any) -> Sequence[str]:
        """Reference types that this item really needs (a subset of ``reference_types``)."""
        ...

    def run(self, item: Item, references: Mapping[str, Any], parameters: Any, slot: Slot) -> StageResult:
        """Do the step. ``references`` holds an opened reference, or None for N/A, for each needed type.

        Raises
        ------
        stream.failure.PermanentError
            The item cannot be processed; the text names the file, the field and what was expected.
        """
        ...


@dataclass(frozen=True, slots=True)
class Member:
    """One member of an association as the joint stage sees it: a status, opaque facts and a small object.

    ``tie_points`` is the content of the member's small side object (None when it has none).
    """

    id: str
    status: str
    facts: Facts
    tie_points: bytes | memoryview | None


@runtime_checkable
class JointStage(Protocol):
    """A step over all members of an association together, without pixels."""

    name: str
    version: str
    parameters_type: type[StageParameters]
    libraries: tuple[str, ...]
    branches: frozenset[str]

    def aligns(self, branch: str) -> bool:
        """Whether members on this branch take part in the solution (the others are finalized at once)."""
        ...

    def solve(self, members: Sequence[Member], star_list: Any, parameters: Any, slot: Slot) -> dict[str, Any]:
        """Solve for all members in canonical order.

        Returns
        -------
        dict
            A JSON document: ``{"members": {id: {...}}, ...}``; opaque to the engine, handed to the finalizing stage.
        """
        ...


class ReferenceSource(Protocol):
    """Where references come from; selection needs only the item's facts and metadata."""

    def select(self, reference_type: str, facts: Facts) -> str | None:
        """Name (path or URL) of the reference for this item, or None for N/A.

        Raises
        ------
        stream.failure.PermanentError
            No candidate where one is required, or two equally good ones.
        """
        ...

    def digest(self, name: str) -> str:
        """Digest of the content; computed once and kept. Raises PermanentError if the file changed since."""
        ...

    def open(self, name: str) -> Any:
        """Open for reading with arrays memory-mapped."""
        ...


class PayloadFormat(Protocol):
    """How the item of the stages is kept between segments: one small tree, and one object for each large array.

    ``load`` maps arrays rather than reading them; whoever changes an array in place gets a private copy (the engine
    asks ``load`` for copy-on-write mappings).
    """

    def load_input(self, path: Path, facts: Facts) -> Item:
        """Open a raw input file. Raises PermanentError naming file and field when it is not what was expected."""
        ...

    def load(self, tree: Path, arrays: Mapping[str, Path]) -> Item:
        """Open a payload: its tree and its arrays by name."""
        ...

    def save_tree(self, item: Item, path: Path) -> None:
        """Write everything of the item except the arrays named by ``array_names``."""
        ...

    def array_names(self, item: Item) -> Iterable[str]:
        """Names of the arrays that are objects of their own (over 1 MB)."""
        ...

    def save_array(self, item: Item, name: str, path: Path) -> None:
        """Write one array as a page-aligned standard ASDF file."""
        ...

    def array_token(self, item: Item, name: str) -> Any:
        """A value that changes whenever the stage code declared the array changed: lets a segment skip rewriting."""
        ...

    def side_objects(self, item: Item) -> Mapping[str, bytes]:
        """Small objects to keep beside the payload for the joint stage (tie points), by name."""
        ...

    def facts(self, item: Item) -> Facts:
        """Facts to put into messages after a segment."""
        ...
