"""One context of a local CRDS cache, read through the field's client: the file that each type resolves to.

No network, and nothing is ever written: what is not in the cache is an error that names it. Nothing is fetched here.

The cache has the client's own layout: ``mappings/roman/*.{pmap,imap,rmap}``, ``references/roman/wfi/FILE`` (or
``references/roman/FILE`` where ``config/roman/ref_cache_subdir_mode`` says ``flat``), ``config/roman/server_config``.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stream.failure import PermanentError
from stream.identity import canonical_json

if TYPE_CHECKING:
    from stream.stage import Facts

__all__ = [
    "DUST_FIELDS",
    "OBSERVATORY",
    "SCHEME",
    "CrdsContext",
    "client_version",
    "mapping_folder",
    "reference_path",
    "server_config",
]

OBSERVATORY = "roman"
SCHEME = "crds://"
"""Before the name of a file in ``meta.ref_file``."""

DUST_FIELDS = {"dustmap_north": "north", "dustmap_south": "south"}
"""Galactic hemisphere of the dust maps: CRDS has one type for both, matched by it alone."""

_NOT_FOUND = "NOT FOUND"
_INSTRUMENT = "wfi"


def client() -> Any:
    """The client's module of mappings.

    Raises
    ------
    PermanentError
        It is not installed, or told to read from the network.
    """
    try:
        from crds.core import config, rmap
    except ImportError as error:
        raise PermanentError(
            f"references from CRDS need its client: install it with pip install 'rampstream[crds]' ({error})"
        ) from error
    if config.S3_ENABLED.get():
        raise PermanentError(
            "CRDS_S3_ENABLED is set, so that the CRDS client would read mappings from the network; unset it and fetch "
            "them with rampstream references sync"
        )
    return rmap


def client_version() -> str:
    """Version of the client, as ``meta.ref_file.crds.version`` has it."""
    from importlib.metadata import version

    return version("crds")


def mapping_folder(cache: Path) -> Path:
    """Where a cache has its mappings."""
    return cache / "mappings" / OBSERVATORY


def reference_path(cache: Path, name: str) -> Path:
    """Where a cache has, or would have, a reference file."""
    flat = cache / "references" / OBSERVATORY
    tag = cache / "config" / OBSERVATORY / "ref_cache_subdir_mode"
    try:
        mode = tag.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        mode = ""
    apart = flat / _INSTRUMENT / name
    if mode == "flat" or (not mode and not apart.is_file() and (flat / name).is_file()):
        return flat / name
    return apart


def server_config(cache: Path) -> dict[str, Any]:
    """What the server last told the cache; empty where nothing did.

    Raises
    ------
    PermanentError
        The file cannot be understood.
    """
    path = cache / "config" / OBSERVATORY / "server_config"
    try:
        found = ast.literal_eval(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, SyntaxError) as error:
        raise PermanentError(f"{path}: cannot be read as what a CRDS server told: {error}") from error
    if not isinstance(found, dict):
        raise PermanentError(f"{path}: cannot be read as what a CRDS server told: no mapping")
    return found


class CrdsContext:
    """The rules of one context.

    Parameters
    ----------
    cache : Path
        The cache, as ``CRDS_PATH`` names it.
    name : str
        Of the pipeline mapping, for example ``roman_0123.pmap``.
    remedy : str, optional
        What to do about a file that the rules name and that is not there.

    Raises
    ------
    PermanentError
        The client is not installed, the context is not in the cache, or its mapping is damaged.
    """

    def __init__(self, cache: Path, name: str, *, remedy: str = "") -> None:
        self.cache = cache
        self.name = name
        self.remedy = remedy or f"fetch it with rampstream references sync crds://{name} INPUT…"
        self._rmap = client()
        self._context = self._loaded(name)
        self._bad: frozenset[str] | None = None
        self._asked: Mapping[str, Any] | None = None
        self._answers: dict[str, str | PermanentError | None] = {}

    def mapping_names(self) -> list[str]:
        """Names of all mappings of the context, in order; each is read, and its checksum compared.

        Raises
        ------
        PermanentError
            One is missing or damaged.
        """
        with _told(self.cache, self.name):
            names: list[str] = self._context.mapping_names()
            return names

    def digest(self) -> str:
        """SHA-256 over all mappings: contexts of one name from two servers differ by it.

        Raises
        ------
        PermanentError
            A mapping is missing, damaged, or known to be scientifically invalid.
        """
        folder, names = mapping_folder(self.cache), self.mapping_names()
        invalid = sorted(self._invalid() & set(names))
        if invalid:
            raise PermanentError(
                f"the CRDS context {self.name} has rules that are marked as scientifically invalid "
                f"({', '.join(invalid)}); choose a newer one"
            )
        files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
        return hashlib.sha256(canonical_json(files)).hexdigest()

    def best(self, reference_type: str, facts: Facts) -> str | None:
        """Name of the file that a type resolves to for an exposure; None for N/A.

        Parameters
        ----------
        reference_type : str
            A type as CRDS names it, or a key of `DUST_FIELDS`.
        facts : dict
            With ``meta``, scalar metadata by dotted path (see `stages.l1.exposure_facts`).

        Raises
        ------
        PermanentError
            The context has no answer: no such type, no row that fits, or the exposure began before every USEAFTER. Or
            the file is known to be scientifically invalid.
        """
        if facts["meta"] != self._asked:  # a job asks about one exposure, and several times
            self._asked, self._answers = dict(facts["meta"]), {}
        if reference_type not in self._answers:
            self._answers[reference_type] = self._answer(reference_type, facts["meta"])
        answer = self._answers[reference_type]
        if isinstance(answer, PermanentError):
            raise PermanentError(str(answer))
        return answer

    def _answer(self, reference_type: str, meta: Mapping[str, Any]) -> str | PermanentError | None:
        try:
            if reference_type in DUST_FIELDS:
                header = {"ROMAN.META.INSTRUMENT.NAME": _INSTRUMENT, "ROMAN.FIELD": DUST_FIELDS[reference_type]}
                return self._chosen("dustmap", header)
            return self._chosen(reference_type, {f"ROMAN.META.{key.upper()}": value for key, value in meta.items()})
        except PermanentError as error:
            return error

    def _chosen(self, kind: str, header: Mapping[str, Any]) -> str | None:
        from crds.core.utils import condition_header

        with _told(self.cache, self.name):
            minimal = self._context.minimize_header(condition_header(header))
            found = self._context.get_best_references(minimal, include=[kind]).get(kind)
        if found is None or found == f"{_NOT_FOUND} n/a":
            return None
        if not isinstance(found, str) or found.startswith(_NOT_FOUND):
            described = ", ".join(f"{key} = {value}" for key, value in sorted(minimal.items()))
            why = str(found).removeprefix(_NOT_FOUND).strip()
            raise PermanentError(
                f"no reference file of type {kind} in the CRDS context {self.name}: {why} ({described})"
            )
        if found in self._invalid():
            raise PermanentError(
                f"{found}, which the CRDS context {self.name} has for type {kind}, is marked as scientifically "
                "invalid; choose a newer context or pin a file"
            )
        return found

    def _loaded(self, name: str) -> Any:
        folder = mapping_folder(self.cache)
        if not name.endswith(".pmap"):
            raise PermanentError(
                f"CRDS context {name!r}: expected the name of a pipeline mapping, like roman_0123.pmap"
            )
        if not (folder / name).is_file():
            raise PermanentError(
                f"{self.cache}: the context {name} is not in this CRDS cache; "
                f"fetch it with rampstream references sync crds://{name}"
            )
        with _told(self.cache, name):
            return self._rmap.load_mapping(name, path=str(folder))

    def _invalid(self) -> frozenset[str]:
        if self._bad is None:
            self._bad = frozenset(str(name) for name in server_config(self.cache).get("bad_files_list", ()))
        return self._bad


@contextmanager
def _told(cache: Path, context: str) -> Iterator[None]:
    """Say in the mission's words what the client's errors mean."""
    from crds.core.exceptions import ChecksumError, CrdsError, CrdsUnknownInstrumentError

    again = f"fetch it with rampstream references sync crds://{context}"
    try:
        yield
    except CrdsUnknownInstrumentError as error:
        raise PermanentError(f"CRDS context {context}: {error}") from error
    except FileNotFoundError as error:
        missing = Path(str(error.filename)).name
        raise PermanentError(f"{cache}: the mapping {missing} is not in this CRDS cache; {again}") from error
    except ChecksumError as error:
        raise PermanentError(f"{cache}: a mapping is damaged: {error}; {again}") from error
    except (CrdsError, OSError, AssertionError) as error:
        raise PermanentError(f"{cache}: the CRDS context {context} cannot be used: {error}") from error
