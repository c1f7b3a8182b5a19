"""What a person asked ``rampstream run`` for, checked before any work."""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio

from ops.crds_cache import defined_context, is_crds
from ops.run_failure import disk_trouble
from ops.settings import RunSettings, load_settings, parse_assignment, parse_reference_pin
from ops.star_sources import defined_stars
from stages.product_names import product_name
from stream.failure import PermanentError

__all__ = ["RunOptions", "log_to_file"]


class RunOptions:
    """What a person asked for, checked.

    Attributes
    ----------
    without_effect : str or None
        Which settings were given that say nothing to ``rampstream run``, in one line.

    Raises
    ------
    PermanentError
        A setting, the references, the star table or the output folder is not usable.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        given: dict[str, Any] = {
            name: value for name in ("preset", "slots", "threads") if (value := getattr(options, name)) is not None
        }
        if options.keep:
            given["keep"] = True
        if options.parameters:
            given["parameter_files"] = tuple(options.parameters)
        if options.save_results:
            given["save_results"] = tuple(options.save_results)
        for text in options.assignments:
            stage, parameter, value = parse_assignment(text)
            given.setdefault("parameters", {}).setdefault(stage, {})[parameter] = value
        if options.pins:
            given["references"] = dict(parse_reference_pin(text) for text in options.pins)
        self.settings: RunSettings = load_settings(options.config, given)
        self.references = _defined_references(options.references, self.settings)
        self.gaia: Any = anyio.run(defined_stars, options.gaia)
        self.out = options.out.resolve()
        self.work = (options.work or options.out / ".rampstream").resolve()
        self.without_effect = _without_effect(self.settings)
        self.replace = bool(options.replace)
        self.json = bool(options.json)
        self.inputs: list[Path] = options.inputs
        for path in self.inputs:
            if path.absolute().parent.resolve() == self.out and product_name(path.name, "cal") == path.name:
                raise PermanentError(f"{path}: its product would take its place; choose another folder for --out")
        for folder in (self.out, self.work):
            _make_writable(folder)


def _without_effect(settings: RunSettings) -> str | None:
    given = [
        name for name in type(settings.associations).model_fields if name in settings.associations.model_fields_set
    ]
    if not given:
        return None
    names = ", ".join(f"associations.{name}" for name in given)
    return f"without effect here: {names}; they count in the distributed engine only"


def _defined_references(text: str, settings: RunSettings) -> Any:
    """References as the run's definition names them: the path of a folder, or a CRDS context."""
    if is_crds(text):
        return defined_context(text, settings)
    folder = Path(text).resolve()
    if not folder.is_dir():
        raise PermanentError(f"--references {text}: there is no such folder")
    return str(folder)


def _make_writable(folder: Path) -> None:
    """Make a folder and write a file there: permission bits alone tell too little (root, read-only or full disks)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
            probe.write(b"probe")
    except (FileExistsError, NotADirectoryError):
        raise PermanentError(f"{folder}: a file is in the place of this folder or of one above it") from None
    except OSError as error:
        raise PermanentError(f"{folder}: the folder cannot be written to: {disk_trouble(error)}") from error


def log_to_file(work: Path) -> None:
    """Let the whole process log to ``logs/run.log`` of the work folder.

    Raises
    ------
    PermanentError
        The folder cannot be written to.
    """
    folder = work / "logs"
    _make_writable(folder)
    handler = logging.FileHandler(folder / "run.log", encoding="utf-8")
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
