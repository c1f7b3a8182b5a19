"""In which generation of schemas the products are written: the input's, so that whoever wrote it can read them."""

from __future__ import annotations

import re
from functools import lru_cache

from stages.asdf_container import ROMAN_TAG

__all__ = ["product_tag"]

_MANIFEST = re.compile(r"^asdf://stsci\.edu/datamodels/roman/manifests/datamodels-(\d+)\.(\d+)(?:\.(\d+))?$")
_OLDEST_MAJOR = 2
"""Generations before this one had another layout: their products are written in the newest."""


@lru_cache(maxsize=64)
def product_tag(source_tag: str, product: str) -> str | None:
    """ASDF tag of a product in the generation of the input.

    Parameters
    ----------
    source_tag : str
        Tag of the input's ``roman`` node.
    product : str
        ``wfi_image``, ``wfi_wcs``, ``segmentation_map``, ``image_source_catalog`` …

    Returns
    -------
    str or None
        None (the library's own default) for inputs of unknown or too old generations.
    """
    import asdf
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    resources = asdf.get_config().resource_manager
    versions = sorted(
        (tuple(int(part or 0) for part in match.groups()), uri) for uri in resources if (match := _MANIFEST.match(uri))
    )
    for version, uri in reversed(versions):
        if version[0] < _OLDEST_MAJOR:
            break
        tags = {tag["tag_uri"] for tag in yaml.load(resources[uri], Loader=loader)["tags"]}  # noqa: S506 - a safe loader
        if source_tag in tags:
            found = [tag for tag in tags if tag.startswith(f"{ROMAN_TAG}{product}-")]
            return found[0] if len(found) == 1 else None
    return None
