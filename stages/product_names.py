"""Names of files: the base name of an input, and the product made from it. Not paths."""

from __future__ import annotations

import re

__all__ = ["IN_PRODUCTS", "PRODUCT_EXTENSIONS", "base_name", "product_name", "separator", "split_detector"]

IN_PRODUCTS = frozenset({"source_catalog", "finalize"})
"""Stages whose output is among the products anyway."""

_SUFFIXES = (
    "ca", "crf", "cal", "dark", "flat", "median", "phot", "photom", "ramp", "rate", "uncal",
    "assignwcs", "assign_wcs", "dq_init", "dqinit", "linearity", "rampfit", "saturation", "dark_current", "darkcurrent",
    "dark_decay", "outlier_detection", "skymatch", "refpix", "cat", "segm", "coadd", "wfi18_transient",
    # lower-case class names of the field's steps
    "assignwcsstep", "darkcurrentstep", "darkdecaystep", "dqinitstep", "flatfieldstep", "fluxstep", "linearitystep",
    "outlierdetectionstep", "photomstep", "rampfitstep", "refpixstep", "resamplestep", "saturationstep", "skymatchstep",
    "sourcecatalogstep", "tweakregstep", "wfi18transientstep", "multibandcatalogstep",
)  # fmt: skip
_TRAILING = re.compile(rf"^(?P<base>.+?)(?P<separator>[-_])(?:{'|'.join(sorted(_SUFFIXES, key=len, reverse=True))})$")
_DETECTOR = re.compile(r"^(?P<before>.+)_(?P<detector>wfi\d{2})(?P<after>_.+)?$", re.IGNORECASE)

PRODUCT_EXTENSIONS = {"cal": ".asdf", "wcs": ".asdf", "segm": ".asdf", "cat": ".parquet"}
"""File extension of each product, by suffix."""


def base_name(filename: str) -> str:
    """File name without its extension and without a recognised trailing suffix (``_uncal``, ``-cal`` …)."""
    stem = _stem(filename)
    match = _TRAILING.match(stem)
    return match["base"] if match else stem


def split_detector(name: str) -> tuple[str, str, str] | None:
    """Split a base name at its detector part: what lies before ``_wfi07``, ``wfi07``, and what follows it.

    The first and last part together name the exposure of the observation, which all its detectors share. None where
    there is no such part.
    """
    match = _DETECTOR.match(name)
    return None if match is None else (match["before"], match["detector"], match["after"] or "")


def product_name(filename: str, suffix: str) -> str:
    """Name of a product: a recognised suffix of the input's name is replaced, an unknown one kept and followed.

    Parameters
    ----------
    filename : str
        The input's name, ``meta.filename``.
    suffix : str
        A key of `PRODUCT_EXTENSIONS`.
    """
    return f"{base_name(filename)}{separator(filename)}{suffix}{PRODUCT_EXTENSIONS[suffix]}"


def separator(filename: str) -> str:
    """What stands before the recognised suffix of a name, ``_`` or ``-``; ``_`` where there is none."""
    match = _TRAILING.match(_stem(filename))
    return match["separator"] if match else "_"


def _stem(filename: str) -> str:
    name = filename.rsplit("/", 1)[-1]
    return name.rsplit(".", 1)[0] if "." in name else name
