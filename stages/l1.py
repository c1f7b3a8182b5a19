"""Open and validate input files: L1 (raw counts), ramp or image. Not the conversion to a ramp, which is dq_init's.

An uncompressed file is memory-mapped copy-on-write; an lz4-compressed one is unpacked. Everything that later stages
rely on is checked here, so that a bad file is refused within milliseconds, by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.asdf_container import ROMAN_TAG, ArrayNode, AsdfContainer, open_container, plain
from stages.exposure import Exposure, Level, StepStatus
from stages.ground_test import is_ground_test, l1_arrays, l1_metadata
from stages.l1_requirements import check_metadata, check_read_pattern
from stages.product_names import base_name
from stages.standing import stages_done
from stages.wcs import wcs_numbers
from stream.failure import PermanentError

if TYPE_CHECKING:
    from stream.stage import Facts

__all__ = ["exposure_facts", "inspect_l1", "open_l1"]

COLUMNS = 4096
AMP33_COLUMNS = 128
BORDER = 4
_LEVELS = {
    "wfi_science_raw": Level.RAW,
    "tvac": Level.RAW,
    "fps": Level.RAW,
    "ramp": Level.RAMP,
    "wfi_image": Level.IMAGE,
}

_Shape = tuple[int | str, ...]
_RAW_ARRAYS: dict[str, tuple[str, _Shape, bool]] = {
    "data": ("u2", ("n", "R", COLUMNS), True),
    "amp33": ("u2", ("n", "R", AMP33_COLUMNS), True),
    "resultantdq": ("u1", ("n", "R", COLUMNS), False),
    "reference_read": ("u2", ("R", COLUMNS), False),
    "reference_amp33": ("u2", ("R", AMP33_COLUMNS), False),
}
_RAMP_ARRAYS: dict[str, tuple[str, _Shape, bool]] = {
    "data": ("f4", ("n", "R", COLUMNS), True),
    "pixeldq": ("u4", ("R", COLUMNS), True),
    "groupdq": ("u1", ("n", "R", COLUMNS), True),
    "amp33": ("u2", ("n", "R", AMP33_COLUMNS), True),
    **{f"border_ref_pix_{side}": ("f4", ("n", "R", 4), True) for side in ("left", "right")},
    **{f"border_ref_pix_{side}": ("f4", ("n", 4, COLUMNS), True) for side in ("top", "bottom")},
    **{f"dq_border_ref_pix_{side}": ("u4", ("R", 4), True) for side in ("left", "right")},
    **{f"dq_border_ref_pix_{side}": ("u4", (4, COLUMNS), True) for side in ("top", "bottom")},
}
_IMAGE = ("Y", COLUMNS - 2 * BORDER)
_IMAGE_ARRAYS: dict[str, tuple[str, _Shape, bool]] = {
    "data": ("f4", _IMAGE, True),
    "dq": ("u4", _IMAGE, True),
    **dict.fromkeys(("err", "var_poisson", "chisq", "dumo"), ("f2", _IMAGE, True)),
    **dict.fromkeys(("var_rnoise", "var_flat"), ("f2", _IMAGE, False)),
    **{name: shape for name, shape in _RAMP_ARRAYS.items() if name == "amp33" or "border" in name},
    "jump_indices": ("i2", ("N", 3), False),
}
_ARRAYS = {Level.RAW: _RAW_ARRAYS, Level.RAMP: _RAMP_ARRAYS, Level.IMAGE: _IMAGE_ARRAYS}

_OF_LATER_STEPS = ("wcs", "cal_logs", "statistics", "wcs_fit_results", "source_catalog")
"""Metadata of an image that are made anew."""


def open_l1(path: Path, *, exposure_id: str | None = None, threads: int = 1) -> Exposure:
    """Open and validate an input file.

    Parameters
    ----------
    path : Path
        An L1 (ScienceRaw; or one of a ground test), ramp or image file in ASDF.
    exposure_id : str, optional
        Id of the exposure; by default the base name of the file. Given when the file was stored under another name.
    threads : int
        Threads for unpacking compressed data.

    Returns
    -------
    Exposure
        Level RAW (data u2, amp33 u2), RAMP or IMAGE, with metadata as plain values; other keys of the ``roman`` node
        are in ``extras``. ``done`` has the stages that it has behind it; of an image that had one, the WCS is that of
        its pointing, without an alignment.

    Raises
    ------
    PermanentError
        Names the file, the field, what was expected and what was found: not ASDF, cut off, another model, wrong
        shape or dtype, incomplete metadata, a read pattern that contradicts the data.
    """
    container = open_container(path)
    level, tag = _model(container)
    source = str(path)
    meta = _metadata(container, tag)
    check_metadata(source, meta)
    nodes = _nodes(container, tag)
    _check_arrays(source, level, nodes)
    _check_standing(source, level, meta)
    exposure_id = exposure_id or base_name(path.name)
    meta["filename"] = _file_name(path, exposure_id, meta)
    resultants = nodes["amp33"].shape[0]
    check_read_pattern(source, meta["exposure"]["read_pattern"], resultants=resultants)
    if not is_ground_test(tag):
        _check_resultant_count(source, meta, resultants)
    arrays, extras = {}, {}
    for key, value in nodes.items():
        if key in _ARRAYS[level]:
            array = container.map_array(value, writable=True, threads=threads).array
            arrays[key] = array.astype(array.dtype.newbyteorder("="), copy=False)
        else:
            extras[key] = _loaded(container, value)
    exposure = Exposure(id=exposure_id, level=level, meta=meta, arrays=arrays, extras=extras, source_tag=tag)
    exposure.done = frozenset(stages_done(level, meta.get("cal_step") or {}))
    if level is Level.IMAGE:
        _take_up_image(container, exposure)
    return exposure


def inspect_l1(path: Path) -> Facts:
    """Facts about an input file from its header alone: a few milliseconds, no pixels.

    Returns
    -------
    dict
        See `exposure_facts`.

    Raises
    ------
    PermanentError
        As `open_l1`, as far as the header (and the sizes of the data blocks) can tell.
    """
    container = open_container(path)
    level, tag = _model(container)
    meta = _metadata(container, tag)
    source = str(path)
    check_metadata(source, meta)
    nodes = {key: value for key, value in _nodes(container, tag).items() if key in _ARRAYS[level]}
    _check_arrays(source, level, nodes)
    _check_standing(source, level, meta)
    for value in nodes.values():
        if isinstance(value, ArrayNode) and value.source is not None:
            container.block(value)
    resultants, rows = nodes["amp33"].shape[:2]
    check_read_pattern(source, meta["exposure"]["read_pattern"], resultants=resultants)
    if not is_ground_test(tag):
        _check_resultant_count(source, meta, resultants)
    meta["filename"] = _file_name(path, base_name(path.name), meta)
    facts = exposure_facts(base_name(path.name), meta, rows=rows, resultants=resultants)
    done = stages_done(level, meta.get("cal_step") or {})
    return {**facts, "done": list(done)} if done else facts


def exposure_facts(exposure_id: str, meta: Mapping[str, Any], *, rows: int, resultants: int) -> Facts:
    """Facts that travel in messages.

    Returns
    -------
    dict
        ``id``, ``exposure_type``, ``detector``, ``optical_element``, ``start_time`` (UTC, ISO to the millisecond),
        ``observation_id``, ``filename``, ``rows``, ``nresultants``, ``wcsinfo`` (dict), and ``meta``: all scalar
        metadata by dotted path, by which references are selected.
    """
    exposure, instrument = meta["exposure"], meta["instrument"]
    return {
        "id": exposure_id,
        "exposure_type": exposure["type"],
        "detector": instrument["detector"],
        "optical_element": instrument["optical_element"],
        "start_time": iso_milliseconds(exposure["start_time"]),
        "observation_id": meta["observation"]["observation_id"],
        "filename": meta["filename"],
        "rows": int(rows),
        "nresultants": int(resultants),
        "wcsinfo": dict(meta["wcsinfo"]),
        "meta": dict(_selection_values(meta)),
    }


def iso_milliseconds(time: Any) -> str:
    """A time as ISO text in UTC, rounded to the millisecond."""
    from astropy.time import Time

    return str(Time(time.utc, format="isot", precision=3).value)


_SELECTION_GROUPS = ("exposure", "instrument", "observation", "visit", "guide_star")


def _selection_values(meta: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Scalars under the groups that a selection may ask for; the others would only make messages heavy."""
    found: list[tuple[str, Any]] = []
    for key, value in meta.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            if prefix or key in _SELECTION_GROUPS:
                found += _selection_values(value, f"{name}.")
        elif isinstance(value, str | int | float | bool):
            found.append((name, value))
        elif hasattr(value, "utc"):
            found.append((name, iso_milliseconds(value)))
    return found


def _model(container: AsdfContainer) -> tuple[Level, str]:
    roman = container.tree.get("roman")
    if roman is None:
        raise PermanentError(f"{container.path}: no key 'roman'; expected an L1 (ScienceRaw), ramp or image file")
    tag = getattr(roman, "_tag", "")
    name = _name(tag)
    if not tag.startswith(ROMAN_TAG) or name not in _LEVELS or not isinstance(roman, Mapping):
        found = name or tag or type(roman).__name__
        raise PermanentError(
            f"{container.path}: 'roman' is a {found}; expected wfi_science_raw (L1), tvac, fps, ramp or wfi_image"
        )
    return _LEVELS[name], tag


def _name(tag: str) -> str:
    """Name of a data model, without the version."""
    return tag.removeprefix(ROMAN_TAG).rpartition("-")[0]


def _file_name(path: Path, exposure_id: str, meta: Mapping[str, Any]) -> str:
    """What ``meta.filename`` is to say: it names the products, so one of another exposure is not believed."""
    for name in (path.name, str(meta["filename"])):
        if base_name(name) == exposure_id:
            return name
    return f"{exposure_id}_uncal.asdf"


def _check_resultant_count(source: str, meta: Mapping[str, Any], resultants: int) -> None:
    found = meta["exposure"]["nresultants"]
    if found != resultants:
        raise PermanentError(f"{source}: meta.exposure.nresultants is {found!r}, the data have {resultants} resultants")


def _nodes(container: AsdfContainer, tag: str) -> dict[str, Any]:
    """What the ``roman`` node has besides its metadata."""
    nodes = {str(key): plain(value) for key, value in container.node("roman").items() if key != "meta"}
    return l1_arrays(nodes) if is_ground_test(tag) else nodes


def _check_standing(source: str, level: Level, meta: Mapping[str, Any]) -> None:
    """Refuse an image that no stage has anything to do with."""
    if level is Level.IMAGE and (meta.get("cal_step") or {}).get("ramp_fit") == StepStatus.SKIPPED:
        raise PermanentError(
            f"{source}: meta.cal_step.ramp_fit is SKIPPED: the image of a fully saturated exposure, which is final"
        )


def _take_up_image(container: AsdfContainer, exposure: Exposure) -> None:
    """Let an image go on from where its steps left it."""
    logs = container.node("roman", "meta").get("cal_logs")
    exposure.logs = [str(line) for line in logs] if isinstance(logs, Sequence) else []
    data = exposure.arrays["data"]
    if (exposure.meta.get("cal_step") or {}).get("assign_wcs") == StepStatus.COMPLETE:
        exposure.wcs = wcs_numbers(exposure.meta, (data.shape[0], data.shape[1]), source=exposure.id)


def _metadata(container: AsdfContainer, tag: str) -> dict[str, Any]:
    try:
        node = container.node("roman", "meta")
        if isinstance(node, Mapping) and _LEVELS.get(_name(tag)) is Level.IMAGE:
            node = {key: value for key, value in node.items() if key not in _OF_LATER_STEPS}
        meta = plain(node)
    except KeyError:
        raise PermanentError(f"{container.path}: roman.meta is missing") from None
    except ValueError as error:
        raise PermanentError(f"{container.path}: roman.meta holds an unreadable value: {error}") from error
    if not isinstance(meta, dict):
        raise PermanentError(f"{container.path}: roman.meta is no mapping")
    result = _loaded(container, meta)
    assert isinstance(result, dict)
    return l1_metadata(result) if is_ground_test(tag) else result


def _loaded(container: AsdfContainer, value: Any) -> Any:
    """A plain node with its arrays read."""
    if isinstance(value, ArrayNode):
        return np.array(container.map_array(value).array)
    if isinstance(value, dict):
        return {key: _loaded(container, inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_loaded(container, inner) for inner in value]
    return value


def _check_arrays(source: str, level: Level, nodes: Mapping[str, Any]) -> None:
    sizes: dict[str, int] = {}
    for name, (dtype, shape, required) in _ARRAYS[level].items():
        node = nodes.get(name)
        if node is None and not required:
            continue
        if not isinstance(node, ArrayNode):
            raise PermanentError(f"{source}: roman.{name} is missing; expected an array of shape {_describe(shape)}")
        if node.dtype.newbyteorder("=") != np.dtype(dtype):
            raise PermanentError(f"{source}: roman.{name} has dtype {node.dtype.name}; expected {np.dtype(dtype).name}")
        if len(node.shape) != len(shape):
            raise PermanentError(
                f"{source}: roman.{name} has {len(node.shape)} dimensions {node.shape}; expected {_describe(shape)}"
            )
        for axis, (found, expected) in enumerate(zip(node.shape, shape, strict=True)):
            wanted = sizes.setdefault(expected, found) if isinstance(expected, str) else expected
            if found != wanted:
                raise PermanentError(
                    f"{source}: roman.{name} has shape {node.shape}; expected {_describe(shape)}, "
                    f"that is {wanted} along axis {axis}"
                )
    if level is Level.IMAGE and sizes["Y"] + 2 * BORDER != sizes["R"]:
        raise PermanentError(
            f"{source}: roman.data has {sizes['Y']} rows; expected {2 * BORDER} fewer than roman.amp33's {sizes['R']}"
        )
    if sizes["n"] < 1 or sizes["R"] < 9:
        raise PermanentError(
            f"{source}: roman.data has shape {nodes['data'].shape}; expected a resultant or more and more than 8 rows"
        )


def _describe(shape: _Shape) -> str:
    words = {"n": "resultants", "R": "rows"}
    return f"({', '.join(words.get(str(n), str(n)) for n in shape)})"
