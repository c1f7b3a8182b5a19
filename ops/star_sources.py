"""Where reference stars come from: what ``--gaia`` may say, and how a run's definition names it. Reads no stars.

========================================= ========================================================================
``--gaia``                                in the definition
========================================= ========================================================================
``FILE``                                  its path
``s3://…/FILE`` (``gs://``, ``az://``)    ``url``, ``digest`` and ``size`` of the object
``DIR``, ``s3://…/CATALOG``, ``hats:URL`` ``hats``, the place, and ``version``, of what the catalog says of itself
``service[:CATALOG]``, ``https://BASE``   ``service``, the place, and ``catalog``, the name of a released catalog
========================================= ========================================================================

The first two are tables that are used whole; the others are asked for the stars in a cone (see `ops.star_answers`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import anyio
import anyio.to_thread

from ops.reference_store import is_url, object_at
from ops.star_service import CATALOGS, DEFAULT_SERVICE, SERVICE_VARIABLE, ask_service
from stream.failure import FatalError, PermanentError
from stream.results import file_digest

if TYPE_CHECKING:
    from ops.star_hats import HatsCatalog
    from stages.tweakreg.cone import SearchCone

__all__ = ["check_source", "defined_stars", "stars_in"]

_HATS = "hats:"

_SERVICE = "service"


async def defined_stars(text: str) -> Any:
    """What ``--gaia`` says, as a definition names it.

    Raises
    ------
    PermanentError
        There is no such file, object or catalog, or no such name of one.
    RetriableError, FatalError
        A store does not answer, or refuses.
    """
    if text == _SERVICE or text.startswith(f"{_SERVICE}:"):
        catalog = text.partition(":")[2]
        return _service(os.environ.get(SERVICE_VARIABLE) or DEFAULT_SERVICE, catalog, text)
    if text.startswith(("https://", "http://")):
        asked = urlsplit(text)
        values = {name.lower(): value for name, value in parse_qsl(asked.query)}
        return _service(asked._replace(query="", fragment="").geturl(), values.get("cat", ""), text)
    if text.startswith(_HATS):
        return await anyio.to_thread.run_sync(_hats, text.removeprefix(_HATS))
    if is_url(text):
        return await _stored(text)
    path = anyio.Path(text)
    if await path.is_dir():
        return await anyio.to_thread.run_sync(_hats, str(await path.resolve()))
    if not await path.is_file():
        raise PermanentError(f"--gaia {text}: there is no such file")
    return str(await path.resolve())


def check_source(gaia: Mapping[str, Any]) -> None:
    """Open a catalog that is asked for cones; a service is not bothered.

    Raises
    ------
    FatalError
        It is not the one that the run is defined with.
    PermanentError, RetriableError
        It cannot be opened.
    """
    if "hats" in gaia:
        _opened(gaia)


def stars_in(gaia: Mapping[str, Any], cone: SearchCone, *, timeout: float) -> dict[str, Any]:
    """Columns of the stars in a cone, for `stages.gaia.write_star_table`; ``timeout`` (s) is that of a service.

    Raises
    ------
    Failure
        See `ops.star_hats` and `ops.star_service`.
    """
    if "hats" in gaia:
        return _opened(gaia).stars(cone)
    return ask_service(gaia["service"], gaia["catalog"], cone, timeout=timeout)


def _opened(gaia: Mapping[str, Any]) -> HatsCatalog:
    from ops.star_hats import HatsCatalog  # with numpy, which no start needs

    catalog = HatsCatalog.open(gaia["hats"])
    if catalog.version != gaia["version"]:
        raise FatalError(
            f"{gaia['hats']}: the star catalog is not the one that the run is defined with: its properties or "
            "partitions have changed; bring that one back, or define a new run"
        )
    return catalog


def _service(base: str, catalog: str, text: str) -> dict[str, str]:
    catalog = (catalog or CATALOGS[0]).upper()
    if catalog not in CATALOGS:
        raise PermanentError(f"--gaia {text}: there is no catalog {catalog!r}; expected one of {', '.join(CATALOGS)}")
    if not urlsplit(base).netloc:
        raise PermanentError(f"--gaia {text}: expected the address of a service, for example {DEFAULT_SERVICE}")
    return {"service": base.rstrip("/"), "catalog": catalog}


def _hats(place: str) -> dict[str, str]:
    if "://" not in place:
        place = str(Path(place).resolve())
    place = place.rstrip("/")
    from ops.star_hats import HatsCatalog

    return {"hats": place, "version": HatsCatalog.open(place).version}


async def _stored(url: str) -> dict[str, Any]:
    """A table that is an object, else a HATS catalog below the URL."""
    store, key = object_at(url)
    if await store.head(key) is not None:
        with tempfile.TemporaryDirectory() as folder:
            fetched = await store.fetch(key, Path(folder))
            digest = await anyio.to_thread.run_sync(file_digest, fetched)
            return {"url": url.rstrip("/"), "digest": digest, "size": (await anyio.Path(fetched).stat()).st_size}
    try:
        return await anyio.to_thread.run_sync(_hats, url)
    except PermanentError as error:
        if await store.head(f"{key}/properties") or await store.head(f"{key}/hats.properties"):
            raise
        raise PermanentError(f"--gaia {url}: there is no such object, and no catalog in the HATS layout") from error
