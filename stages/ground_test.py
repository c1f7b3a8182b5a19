"""Exposures of the ground tests (TVAC and FPS), in the layout of their time, as L1. Not a reader of files.

Their metadata are laid over placeholders for all that an L1 file has and they have not, under the same names where the
names are the same, and beside them where not: as the mission's pipeline does it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.asdf_container import ROMAN_TAG, ArrayNode
from stages.exposure import CAL_STEP_KEYS

__all__ = ["is_ground_test", "l1_arrays", "l1_metadata", "with_own_nodes"]

_MODELS = {f"{ROMAN_TAG}tvac-": "TvacModel", f"{ROMAN_TAG}fps-": "FpsModel"}

_ARRAYS = ("data", "amp33")
"""What is processed. Reset and reference reads are not added back, and no product has them."""

_NODES = ("groundtest", "guidestar")
"""Groups that keep their own tags in products."""


def is_ground_test(tag: str) -> bool:
    """Whether an ASDF tag is that of a ground test's exposure."""
    return _model(tag) is not None


def l1_metadata(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of an L1 file: placeholders, and over them those of a ground test's exposure.

    Parameters
    ----------
    meta : mapping
        ``roman.meta`` as plain values.
    """
    from astropy.time import Time
    from roman_datamodels import datamodels

    # `statistics` are those of the test's own software; the image gets its own
    own = {key: value for key, value in meta.items() if key not in {"statistics", "model_type"}}
    date = own.get("file_date")  # under a tag of its own, around what a time has
    if isinstance(date, str | Mapping):
        own["file_date"] = Time(str(date if isinstance(date, str) else date["value"]), scale="utc")
    if isinstance(own.get("cal_step"), Mapping):
        own["cal_step"] = {key: value for key, value in own["cal_step"].items() if key in CAL_STEP_KEYS}
    placeholders = _plain(datamodels.ScienceRawModel.create_fake_data().meta)
    merged: dict[str, Any] = _laid_over(placeholders, own)
    return merged


def l1_arrays(nodes: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of an L1 file out of a ground test's quantities, by name; what is no quantity stays as it is."""
    return {
        name: nodes[name]["value"] if isinstance(nodes[name], Mapping) and "value" in nodes[name] else nodes[name]
        for name in _ARRAYS
        if name in nodes
    }


def with_own_nodes(meta: dict[str, Any], tag: str) -> dict[str, Any]:
    """Metadata with the groups that only ground tests have as their data models have them; changed in place."""
    name = _model(tag)
    if name is None:
        return meta
    from roman_datamodels import datamodels

    model = getattr(datamodels, name).create_fake_data()
    for group in _NODES:
        if isinstance(meta.get(group), Mapping):
            meta[group] = type(model.meta[group])(_with_quantities(meta[group]))
    return meta


def _model(tag: str) -> str | None:
    return next((name for prefix, name in _MODELS.items() if tag.startswith(prefix)), None)


def _laid_over(low: Any, high: Any) -> Any:
    if isinstance(low, Mapping) and isinstance(high, Mapping):
        return {**low, **{key: _laid_over(low[key], value) if key in low else value for key, value in high.items()}}
    return high


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping) or hasattr(value, "items"):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, str) else value


def _with_quantities(value: Any) -> Any:
    from astropy import units

    if isinstance(value, Mapping):
        if value.keys() == {"value", "unit"} and not isinstance(value["value"], ArrayNode):
            return units.Quantity(value["value"], value["unit"])
        return {key: _with_quantities(inner) for key, inner in value.items()}
    return value
