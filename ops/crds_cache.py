"""Which CRDS context a run is pinned to, and which local cache it lies in. Not the rules, and not the fetching.

``--references crds://CONTEXT`` pins a context by name; ``crds:`` alone pins, when the run is defined, the one that
``CRDS_CONTEXT`` names or that the cache was last told to be in use. The definition has the context and a digest of its
mappings; where the cache is, is each machine's own affair (the setting ``crds_path``, or ``CRDS_PATH``). A context that
was published in object storage is pinned by its index (`ops.run_inputs`), and needs no cache.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ops.settings import RunSettings
from stages.crds_context import CrdsContext, server_config
from stream.failure import FatalError, PermanentError

__all__ = [
    "check_pinned_context",
    "crds_cache",
    "defined_context",
    "is_crds",
    "is_crds_definition",
    "named_context",
    "open_context",
]

_SCHEME = "crds:"


def is_crds(text: str) -> bool:
    """Whether references are to come from CRDS."""
    return text.startswith(_SCHEME)


def is_crds_definition(references: Any) -> bool:
    """Whether a definition's references come from a CRDS cache of each machine."""
    return isinstance(references, Mapping) and "crds" in references and "url" not in references


def crds_cache(settings: RunSettings) -> Path:
    """Folder of this machine's CRDS cache.

    Raises
    ------
    PermanentError
        None is named.
    """
    named = settings.crds_path or os.environ.get("CRDS_PATH")
    if not named:
        raise PermanentError(
            "references from CRDS lie in a local cache: say where with CRDS_PATH, or with the setting crds_path"
        )
    return Path(named).expanduser().absolute()


def named_context(text: str) -> str | None:
    """Return the context in ``crds://CONTEXT`` or ``crds:CONTEXT``; None where it is left open."""
    return text.removeprefix(_SCHEME).strip("/") or None


def open_context(text: str, cache: Path) -> CrdsContext:
    """Open the context that a person names.

    Raises
    ------
    PermanentError
        It is not in the cache, or none is named and the cache does not tell which one is in use.
    """
    name = named_context(text) or os.environ.get("CRDS_CONTEXT") or _in_use(cache)
    return CrdsContext(cache, name)


def _in_use(cache: Path) -> str:
    known = server_config(cache)
    name = known.get("latest_context") or known.get("operational_context")
    if not name:
        raise PermanentError(
            f"{cache}: this CRDS cache does not tell which context is in use: name one (--references "
            "crds://roman_0123.pmap), or fetch it with rampstream references sync crds:"
        )
    return str(name)


def defined_context(text: str, settings: RunSettings) -> dict[str, Any]:
    """References from CRDS as a run's definition names them.

    Raises
    ------
    PermanentError
        The context is not complete in the cache, or known to be invalid.
    """
    context = open_context(text, crds_cache(settings))
    return {"crds": context.name, "mappings": context.digest(), "parameters": settings.parameter_references}


def check_pinned_context(references: Mapping[str, Any], cache: Path) -> None:
    """Make sure that a cache has the context that a run is defined with.

    Raises
    ------
    FatalError
        It has not, or has another under its name.
    """
    try:
        found = CrdsContext(cache, references["crds"]).digest()
    except PermanentError as error:
        raise FatalError(f"the references that the run is defined with cannot be had: {error}") from error
    if found != references["mappings"]:
        raise FatalError(
            f"{cache}: the CRDS context {references['crds']} is not the one that the run is defined with: its mappings "
            f"have the digest {found[:16]}…, expected {references['mappings'][:16]}… (another server's, or changed)"
        )
