"""Settings of a run: a TOML file, then ``RAMPSTREAM_*`` variables, then command-line options, in rising order."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from ops.step_words import step_words
from stages.parameter_files import OVERRIDE
from stream.failure import PermanentError

__all__ = ["AssociationRules", "CustomStage", "RunSettings", "load_settings", "parse_assignment", "parse_reference_pin"]

_NOT_APPLICABLE = Path("N/A")
"""In place of a reference file: do without one."""

_DETECTOR = re.compile(r"WFI[0-9]{2}")


class CustomStage(BaseModel):
    """A stage of the user's own, put into the topology."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    entry: str = Field(
        description="``module:Class`` of the stage, or the name of an entry point in 'rampstream.stages'."
    )
    after: str | None = Field(default=None, description="Run right after this stage.")
    replaces: str | None = Field(default=None, description="Take the place of this stage.")


class AssociationRules(BaseModel):
    """When an association closes, and what becomes of members that do not come: part of a run's definition."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    minimum: int = Field(
        default=1,
        ge=1,
        description="Fewest members, not failed, that are worth aligning; of an association with fewer in all, all.",
    )
    deadline: float | None = Field(
        default=86_400.0,
        gt=0,
        allow_inf_nan=False,
        description='Seconds from the first member to the deadline; "none" for no deadline.',
    )
    revision_delay: float = Field(
        default=1_800.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds without a change before changes after a close open a new revision.",
    )
    on_missing: Literal["align", "wait", "fail"] = Field(
        default="align", description="What to do about members that failed or have not come at the deadline."
    )

    @field_validator("deadline", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        """TOML has no word for nothing."""
        return None if isinstance(value, str) and value.strip().lower() == "none" else value


class RunSettings(BaseSettings):
    """Everything that decides how a run works; parameters of stages are under their own names."""

    model_config = SettingsConfigDict(
        env_prefix="RAMPSTREAM_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    preset: Literal["fused", "balanced", "granular"] = Field(
        default="fused", description="Which consecutive stages run back to back without a topic between them."
    )
    slots: int = Field(
        default=1, ge=1, description="Exposures worked on at the same time, each in a job process of its own."
    )
    threads: int = Field(
        default_factory=lambda: max(1, len(os.sched_getaffinity(0))),
        ge=1,
        description="Threads for the compiled kernels of all slots together.",
    )
    job_seconds: float = Field(default=1800.0, gt=0, description="Wall-clock limit of one job.")
    job_memory_gb: float | None = Field(
        default=None,
        gt=0,
        description="Limit on a job's private memory in GB; none: 80 % of the machine's, shared by the slots.",
    )
    keep: bool = Field(
        default=False, description="Keep payloads in the work folder after their associations are closed."
    )
    keep_after: tuple[str, ...] = Field(
        default=(), description="Stages whose results are stored although a segment goes on."
    )
    references: dict[str, Path] = Field(
        default_factory=dict, description="Reference files by type that win over selection; N/A to do without."
    )
    parameters: dict[str, dict[str, Any]] = Field(default_factory=dict, description="Parameters by stage.")
    parameter_files: tuple[Path, ...] = Field(
        default=(), description="The field's parameter files (ASDF) of steps or of the pipeline; later ones win."
    )
    save_results: tuple[str, ...] = Field(
        default=(), description="Stages whose output is kept as a file beside the products (``run``)."
    )
    parameter_references: bool = Field(
        default=True, description="Take parameters from CRDS (``pars-*``) where references come from there."
    )
    crds_path: Path | None = Field(default=None, description="Local CRDS cache; none: the variable CRDS_PATH.")
    associations: AssociationRules = Field(
        default_factory=AssociationRules, description="When associations close (distributed engine)."
    )
    detectors: tuple[str, ...] = Field(
        default=tuple(f"WFI{number:02d}" for number in range(1, 19)),
        description="Detectors that ``ingest --group-detectors`` expects of each exposure.",
    )
    run: str = Field(default="prompt", description="The run that the distributed verbs work on.")
    broker: str = Field(
        default="embedded:",
        description="``kafka://HOST:PORT[,HOST:PORT…]`` or ``embedded:[DIR]`` (one consuming process).",
    )
    store: str = Field(default="", description="``s3://BUCKET/PREFIX``, ``gs://…``, ``az://…`` or a folder.")
    work: Path = Field(
        default=Path(".rampstream"), description="A worker's folder for what can be made again: caches, scratch, logs."
    )
    partitions: int = Field(
        default=36, ge=1, description="Partitions of each inbox: the most workers that can share it."
    )
    spread: int = Field(default=2, ge=1, description="Partitions over which the exposures of one detector are spread.")
    replication: int = Field(
        default=0, ge=0, description="Replicas of each topic; 0 for three, or as many as there are brokers."
    )
    retention_hours: float = Field(default=168.0, gt=0, description="How long topics keep records, read or not.")
    cache_gb: float = Field(default=20.0, gt=0, description="Bound on fetched objects in the work folder.")
    reference_cache_gb: float = Field(
        default=50.0,
        gt=0,
        description="Bound on references fetched from object storage, and again on arrays unpacked from them.",
    )
    reference_cache: Path | None = Field(
        default=None,
        description="Folder for fetched references, which workers of one machine may share; none: in the work folder.",
    )
    drain_seconds: float = Field(
        default=180.0, ge=0, description="How long a worker that is told to stop may finish what is in flight."
    )
    session_seconds: float = Field(
        default=30.0, ge=1, description="How long a consumer may be silent before its partitions go to others."
    )
    retry_seconds: tuple[float, ...] = Field(
        default=(60.0, 600.0, 3600.0), description="Mean wait of each retry topic."
    )
    health: str = Field(
        default="127.0.0.1:0", description="Where a worker answers /healthz, /readyz and /metrics; port 0 for any."
    )
    warm_server: Path | None = Field(
        default=None, description="Socket of a warm server, which starts job processes of many workers of one machine."
    )
    stages: dict[str, CustomStage] = Field(default_factory=dict, description="Stages added or replaced by name.")

    @field_validator("detectors")
    @classmethod
    def _in_order(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        upper = sorted(name.strip().upper() for name in value)
        if not upper or len(set(upper)) != len(upper) or not all(_DETECTOR.fullmatch(name) for name in upper):
            msg = "expected names of detectors, each once, like WFI01"
            raise ValueError(msg)
        return tuple(upper)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Options win over variables; the file's values come in through `load_settings`."""
        del settings_cls, dotenv_settings, file_secret_settings
        return init_settings, env_settings


def parse_assignment(text: str) -> tuple[str, str, Any]:
    """Split ``stage.parameter=value``; the value is read as TOML where it can be, else as text.

    Raises
    ------
    PermanentError
        The text has not this form.
    """
    target, equals, value = text.partition("=")
    stage, dot, parameter = target.strip().partition(".")
    if not (equals and dot and stage and parameter):
        raise PermanentError(f"--set {text!r}: expected stage.parameter=value, for example saturation.n_pix_grow_sat=1")
    try:
        parsed = tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        lowered = value.strip().lower()
        parsed = {"true": True, "false": False}.get(lowered, value.strip())
    return stage, parameter, parsed


def parse_reference_pin(text: str) -> tuple[str, Path]:
    """Split ``TYPE=FILE``, or ``TYPE=N/A`` to do without.

    Raises
    ------
    PermanentError
        The text has not this form, or the file does not exist.
    """
    reference_type, equals, name = text.partition("=")
    if not (equals and reference_type and name):
        raise PermanentError(f"--reference {text!r}: expected TYPE=FILE, for example flat=my_flat.asdf")
    path = Path(name)
    if path != _NOT_APPLICABLE and not path.is_file():
        raise PermanentError(f"--reference {text!r}: the file {name} does not exist")
    return reference_type.strip().lower(), path if path == _NOT_APPLICABLE else path.resolve()


def _merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def load_settings(config: Path | None, options: dict[str, Any]) -> RunSettings:
    """Merge the file, the environment and the options.

    Parameters
    ----------
    config : Path or None
        TOML file.
    options : dict
        Values given on the command line, in the shape of `RunSettings`.

    Raises
    ------
    PermanentError
        A value is wrong; the text names where it came from, the field and what was expected.
    """
    from_file = {} if config is None else _read_file(config)
    try:
        environment = RunSettings().model_dump(exclude_unset=True)
    except SettingsError as error:
        raise PermanentError(f"environment variables RAMPSTREAM_*: {error}; expected JSON") from error
    except ValidationError as error:
        raise PermanentError("; ".join(_described("the environment", item) for item in error.errors())) from error
    try:
        settings = RunSettings(**_merge(_merge(from_file, environment), options))
    except ValidationError as error:
        raise PermanentError(
            "; ".join(
                _described("the command line" if _has(options, item["loc"]) else str(config), item)
                for item in error.errors()
            )
        ) from error
    for reference_type, path in settings.references.items():
        if path != _NOT_APPLICABLE and not path.is_file():
            where = f"{config}: " if reference_type in from_file.get("references", {}) else ""
            raise PermanentError(f"{where}references.{reference_type}: the file {path} does not exist")
    words = step_words(settings.parameters, settings.parameter_files)
    return settings.model_copy(
        update={
            "parameters": words.parameters,
            "references": {**words.overrides, **settings.references},
            "save_results": words.saved(settings.save_results),
        }
    )


def _read_file(config: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise PermanentError(f"{config}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PermanentError(f"{config}: not valid TOML: {error}") from error
    for own in values.get("parameters", {}).values() if isinstance(values.get("parameters"), dict) else ():
        for name, given in own.items() if isinstance(own, dict) else ():
            if name.startswith(OVERRIDE) and given:
                own[name] = str(_beside(config, given))
    pins = values.get("references")
    if isinstance(pins, dict):
        values["references"] = {kind.strip().lower(): _beside(config, path) for kind, path in pins.items()}
    files = values.get("parameter_files")
    if isinstance(files, list):
        values["parameter_files"] = tuple(_beside(config, path) for path in files)
    return values


def _beside(config: Path, path: Any) -> Any:
    """A file named in a settings file, which counts from the folder of that."""
    if not isinstance(path, str):
        return path
    return _NOT_APPLICABLE if Path(path) == _NOT_APPLICABLE else (config.parent / path).resolve()


def _has(values: Any, location: tuple[int | str, ...]) -> bool:
    """Whether a nested value is there; a location that ends inside a value counts as in it."""
    for part in location:
        if not isinstance(values, dict):
            return True
        if part not in values:
            return False
        values = values[part]
    return True


def _described(source: str, item: Any) -> str:
    """One validation error: where it came from, the field, what was expected, what was found."""
    field = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = CustomStage.model_fields if len(item["loc"]) > 1 else RunSettings.model_fields
        return f"{source}: {field}: there is no such setting; expected one of {', '.join(known)}"
    return f"{source}: {field}: {item['msg']} (got {item['input']!r})"
