"""Asks a catalog service for the stars in a cone, by the protocol of the mission's archive. Keeps nothing.

One request: ``GET BASE/vo/CatalogSearch.aspx?RA=&DEC=&EPOCH=&SR=&FORMAT=CSV&CAT=``, degrees and decimal year;
the answer is CSV. The service moves its stars to the epoch itself, so what comes has positions alone.
"""

from __future__ import annotations

import csv
import http.client
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from stream.failure import PermanentError, RetriableError

if TYPE_CHECKING:
    from stages.tweakreg.cone import SearchCone

__all__ = ["CATALOGS", "DEFAULT_SERVICE", "SERVICE_VARIABLE", "ask_service", "query_url", "stars_of_answer"]

LOG = logging.getLogger(__name__)

DEFAULT_SERVICE = "https://gsss.stsci.edu/webservices"

SERVICE_VARIABLE = "ASTROMETRIC_CATALOG_URL"
"""The field's variable for another service."""

CATALOGS = ("GAIADR3", "GAIADR2", "GAIADR1", "GAIAREFCAT")

_WAITS = (1.0, 5.0)
"""Seconds before the second and the third try: what lasts longer is for the engine's own tries."""

_PIECE = 1 << 16

_NEEDED = ("ra", "dec", "mag", "objID", "epoch", "pmra", "pmdec")

_PASSING = frozenset({408, 425, 429})
"""Refusals that may well be none next time."""

_QUOTED = 200
"""Characters of an answer that an error shows."""


def query_url(base: str, catalog: str, cone: SearchCone) -> str:
    """The request, byte for byte as the field's own client writes it."""
    values = {
        "RA": repr(cone.ra),
        "DEC": repr(cone.dec),
        "EPOCH": repr(cone.epoch),
        "SR": repr(cone.radius),
        "FORMAT": "CSV",
        "CAT": catalog,
    }
    return f"{base.rstrip('/')}/vo/CatalogSearch.aspx?{urlencode(values)}"


def ask_service(
    base: str,
    catalog: str,
    cone: SearchCone,
    *,
    timeout: float,
    sleep: Callable[[float], Any] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """The stars in a cone at its epoch.

    Parameters
    ----------
    base : str
        Where the service is.
    catalog : str
        One of `CATALOGS`.
    cone : SearchCone
        Where and when.
    timeout : float
        Seconds for the whole answer, tries and waits included.

    Returns
    -------
    dict
        ``ra``, ``dec`` (f8, degrees), ``mag``, ``epoch`` (f8) and ``objID``; rows without proper motion are left out.

    Raises
    ------
    RetriableError
        No answer in time, or one that says that the service is in trouble.
    PermanentError
        The request is refused, or the answer is no table of stars.
    """
    url = query_url(base, catalog, cone)
    deadline = clock() + timeout
    for wait in (*_WAITS, None):
        try:
            text = _answer(url, deadline - clock(), deadline, clock)
            return stars_of_answer(text, where=f"the catalog service ({url})")
        except RetriableError as error:
            if wait is None or clock() + wait >= deadline:
                raise
            LOG.warning("%s; asked again in %g s", error, wait)
            sleep(wait)
    raise AssertionError  # the last try returns or raises


def _answer(url: str, left: float, deadline: float, clock: Callable[[], float]) -> str:
    late = f"the catalog service did not answer within tweakreg.vo_timeout ({url})"
    if left <= 0:
        raise RetriableError(late)
    if urlsplit(url).scheme not in {"http", "https"}:
        raise PermanentError(f"{url}: expected http:// or https://")
    request = urllib.request.Request(url, headers={"Content-Type": "text/csv"})  # noqa: S310 - checked above
    pieces: list[bytes] = []
    try:
        with urllib.request.urlopen(request, timeout=left) as answer:  # noqa: S310 - checked above
            # a server that sends a byte now and then never stalls a read: the whole answer has the time limit
            while piece := answer.read1(_PIECE):
                pieces.append(piece)
                if clock() > deadline:
                    raise RetriableError(late)
            if answer.length:
                raise RetriableError(f"the answer of the catalog service was cut off ({url})")
    except urllib.error.HTTPError as error:
        told = f"the catalog service refused with status {error.code} {error.reason} ({url})"
        passing = error.code >= 500 or error.code in _PASSING
        raise (RetriableError if passing else PermanentError)(told) from None
    except TimeoutError:
        raise RetriableError(late) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise RetriableError(late) from None
        raise RetriableError(f"the catalog service cannot be reached: {reason!s} ({url})") from None
    return b"".join(pieces).decode("utf-8", errors="replace")


def stars_of_answer(text: str, *, where: str) -> dict[str, Any]:
    """The columns of an answer (see `ask_service`).

    Raises
    ------
    PermanentError
        It is no such table.
    """
    lines = [line for line in text.lstrip("\ufeff").splitlines() if line.strip() and not line.startswith("#")]
    if not lines or lines[0].startswith("No data records"):
        return _columns([])
    header = [name.strip() for name in next(csv.reader(lines[:1]))]
    lacking = [name for name in _NEEDED if name not in header]
    if lacking:
        raise PermanentError(f"{where} has no column {', '.join(lacking)}; its answer begins {text[:_QUOTED]!r}")
    rows = [row for row in csv.DictReader(lines[1:], fieldnames=header) if _text(row, "pmra") and _text(row, "pmdec")]
    try:
        return _columns(rows)
    except ValueError as error:
        raise PermanentError(f"{where} answered with text where numbers belong: {error}") from None


def _text(row: dict[str, Any], name: str) -> str:
    return (row.get(name) or "").strip()


def _columns(rows: list[dict[str, Any]]) -> dict[str, Any]:
    import numpy as np  # no start needs it

    columns: dict[str, Any] = {
        name: np.array([float(_text(row, name) or "nan") for row in rows], dtype=np.float64)
        for name in ("ra", "dec", "mag", "epoch")
    }
    return columns | {"objID": np.array([_text(row, "objID") for row in rows], dtype=str)}
