"""Write one product through the mission's data models, which check it against its schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.finalize.schema_tags import product_tag
from stream.failure import PermanentError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["BASIC_KEYS", "plain_metadata", "required_metadata", "select_groups", "write_product"]

BASIC_KEYS = (
    "calibration_software_name", "calibration_software_version", "product_type", "filename", "file_date", "model_type",
    "origin", "prd_version", "sdf_software_version", "telescope",
)  # fmt: skip
"""Keys at the top of every product's metadata."""


def plain_metadata(value: Any) -> Any:
    """A deep copy in which numpy numbers are Python numbers and tuples are lists, whatever way the metadata came."""
    if isinstance(value, Mapping):
        return {key: plain_metadata(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain_metadata(inner) for inner in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.copy()
    return value


def select_groups(meta: Mapping[str, Any], groups: tuple[str, ...], *, model_type: str) -> dict[str, Any]:
    """Copies of the basic keys and of these groups, as far as they exist."""
    selected = {key: plain_metadata(meta[key]) for key in (*BASIC_KEYS, *groups) if key in meta}
    selected["model_type"] = model_type
    return selected


def required_metadata(meta: Mapping[str, Any], model_name: str, schema: str, source_tag: str) -> dict[str, Any]:
    """Copies of those metadata that a model's schema requires: what catalog and segmentation map repeat of the image.

    Optional keys (such as ``instrument.data_encoding_offset``) and unknown ones stay behind, as in the reference
    implementation.

    Parameters
    ----------
    meta : mapping
        The image's metadata.
    model_name, schema, source_tag : str
        As for `write_product`.
    """
    from roman_datamodels import datamodels

    model = getattr(datamodels, model_name).create_minimal({"meta": meta}, tag=product_tag(source_tag, schema))
    selected: dict[str, Any] = plain_metadata(dict(model.meta.items()))
    selected["model_type"] = model_name
    return selected


def write_product(path: Path, model_name: str, schema: str, source_tag: str, content: Mapping[str, Any]) -> None:
    """Validate and save; the file's ``meta.filename`` and ``meta.file_date`` are its own.

    Parameters
    ----------
    path : Path
        The file to write.
    model_name : str
        Class in ``roman_datamodels.datamodels``.
    schema : str
        Name of the model's tag without its version.
    source_tag : str
        Tag of the input, which decides the version.
    content : mapping
        Keys of the ``roman`` node.

    Raises
    ------
    PermanentError
        The content does not follow the schema: names the product and what is wrong.
    """
    from asdf.exceptions import ValidationError
    from roman_datamodels import datamodels

    model = getattr(datamodels, model_name).create_minimal(tag=product_tag(source_tag, schema))
    for key, value in content.items():
        model[key] = value
    try:
        model.save(path)
    except ValidationError as error:
        path.unlink(missing_ok=True)
        raise PermanentError(
            f"{path.name}: the product does not follow the schema of {schema}: {error.message}"
        ) from error
