"""What a job process keeps of a run for its life: stages, parameters, references. Not what jobs do with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ops.job_references import reference_source
from stages.crds_context import client_version
from stages.crds_references import CrdsReferences
from stages.indexed_references import IndexedContextReferences, IndexedReferences
from stages.parameter_references import ParameterReferences
from stages.payload import ExposurePayload
from stages.pipeline import FINALIZE, make_stage
from stream.failure import PermanentError
from stream.identity import hash_parts
from stream.results import file_digest
from stream.segment import stage_recipe
from stream.stage import Slot, StageParameters

__all__ = ["Workbench", "library_versions", "schema_generation"]

SCHEMA_PACKAGES = ("roman_datamodels", "rad")

_BY_CONTEXT = (CrdsReferences, IndexedContextReferences)
"""Sources that choose by the rules of a CRDS context."""


class Workbench:
    """Stages, parameters and references of one run, made once in a process.

    Parameters
    ----------
    environment : mapping
        ``entries`` (stage to ``module:Class``), ``parameters`` (stage to values), ``references``, ``pins``, ``cache``
        and ``cache_bytes`` (see `ops.job_references`; with a context, ``references`` also tell whether ``parameters``
        come from it), and ``gaia`` (see `ops.star_sources`).
    """

    def __init__(self, environment: Mapping[str, Any], slot: Slot) -> None:
        self.environment = environment
        self._stages: dict[str, Any] = {}
        self._parameters: dict[str, StageParameters] = {}
        self.payload = ExposurePayload(threads=slot.threads)
        self.references = reference_source(environment)
        self._parameter_references: ParameterReferences | None = None
        if isinstance(self.references, _BY_CONTEXT) and environment["references"]["parameters"]:
            self._parameter_references = ParameterReferences(self.references.context)

    @classmethod
    def lent(cls, arguments: Mapping[str, Any], slot: Slot) -> Workbench:
        """Return the process's workbench for a job that opens references: those that were fetched come with it."""
        bench = cls.of(arguments["environment"], slot)
        if isinstance(bench.references, IndexedReferences):
            bench.references.lend(arguments.get("files", {}))
        return bench

    @classmethod
    def of(cls, environment: Mapping[str, Any], slot: Slot) -> Workbench:
        """Return the process's workbench for this environment."""
        key = "workbench:" + json.dumps(environment, sort_keys=True)
        bench = slot.scratch.get(key)
        if bench is None:
            bench = slot.scratch[key] = cls(environment, slot)
        found: Workbench = bench
        return found

    def stage(self, name: str) -> Any:
        """Return the stage of that name."""
        if name not in self._stages:
            self._stages[name] = make_stage(self.environment["entries"][name])
        return self._stages[name]

    @property
    def crds(self) -> dict[str, str] | None:
        """What products say about CRDS: version of the client, and context; None where references come elsewhere."""
        if not isinstance(self.references, _BY_CONTEXT):
            return None
        return {"version": client_version(), "context": self.references.context.name}

    def parameters(self, name: str, facts: Mapping[str, Any] | None = None) -> Any:
        """Return the stage's parameters for an exposure, checked; without facts those that the run is defined with.

        Parameters from CRDS give way to those of the definition.
        """
        values = self.environment["parameters"].get(name, {})
        if facts and self._parameter_references is not None:
            values = {**self._parameter_references.parameters(name, dict(facts)), **values}
        key = json.dumps([name, values], sort_keys=True)
        if key not in self._parameters:
            model = self.stage(name).parameters_type
            try:
                self._parameters[key] = model(**values)
            except ValidationError as error:
                raise PermanentError(
                    "; ".join(_wrong_parameter(name, model, item) for item in error.errors())
                ) from None
        return self._parameters[key]

    def recipe(self, name: str, facts: Mapping[str, Any]) -> str:
        """Digest of everything that decides the stage's result apart from its input."""
        recipe = stage_recipe(
            self.stage(name),
            self.parameters(name, facts),
            self.references,
            dict(facts),
            schema_generation=schema_generation(),
            salt=self.environment.get("salt"),
        )
        recipe = self._with_named_files(recipe, name, facts)
        # The products name the context: equal files chosen by another one are the same numbers in other products.
        return hash_parts("crds", recipe, self.crds) if name == FINALIZE and self.crds is not None else recipe

    def _with_named_files(self, recipe: str, name: str, facts: Mapping[str, Any]) -> str:
        """The recipe, with the content of files that parameters name."""
        paths = self.parameters(name, facts).named_files()
        if not paths:
            return recipe
        missing = [path for path in paths if not Path(path).is_file()]
        if missing:
            raise PermanentError(f"a parameter of {name} names the file {missing[0]}, which does not exist")
        return hash_parts("named files", recipe, [file_digest(Path(path)) for path in paths])

    def needed(self, name: str, facts: Mapping[str, Any]) -> list[str]:
        """References that the stage opens and that must be lent to the job."""
        if not isinstance(self.references, IndexedReferences):
            return []
        types = self.stage(name).references_for(dict(facts), self.parameters(name, facts))
        selected = [self.references.select(reference_type, dict(facts)) for reference_type in types]
        return [found for found in selected if found is not None and self.references.needs(found)]

    def reference_digests(self, facts: Mapping[str, Any]) -> dict[str, str]:
        """Digest of every reference file that any stage uses on an exposure, by its path."""
        found: dict[str, str] = {}
        for name in self.environment["entries"]:
            stage = self.stage(name)
            if facts["exposure_type"] not in stage.branches or not hasattr(stage, "references_for"):
                continue
            for reference_type in stage.references_for(dict(facts), self.parameters(name, facts)):
                selected = self.references.select(reference_type, dict(facts))
                if selected is not None:
                    found[selected] = self.references.digest(selected)
        return found


def _wrong_parameter(stage: str, model: type[BaseModel], item: Any) -> str:
    """One validation error: stage and parameter, what was expected, what was found."""
    field = ".".join([stage, *map(str, item["loc"])])
    if item["type"] == "extra_forbidden":
        return f"{field}: there is no such parameter; expected one of {', '.join(model.model_fields)}"
    return f"{field}: {item['msg']} (got {item['input']!r})"


def library_versions(names: tuple[str, ...]) -> dict[str, str]:
    """Versions of distributions by name."""
    return {name: version(name) for name in names}


def schema_generation() -> str:
    """Generation of the schemas that products follow."""
    return " ".join(f"{name}-{version(name)}" for name in SCHEMA_PACKAGES)
