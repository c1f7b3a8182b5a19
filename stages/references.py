"""Reference files: opened read-only with arrays memory-mapped, and selected by their own metadata from a directory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["Reference"]


class Reference(Protocol):
    """One opened reference file.

    Attributes
    ----------
    path : Path
        The file.
    recorded_name : str
        What ``meta.ref_file.<type>`` says: the absolute path for a file from a directory.
    """

    path: Path
    recorded_name: str

    def array(self, *keys: str) -> NDArray[Any]:
        """Memory-mapped, read-only array at ``roman.<keys…>``, for example ``array("coeffs")``."""
        ...

    def value(self, *keys: str) -> Any:
        """Any node at ``roman.<keys…>``, for example ``value("meta", "oversample")`` or ``value("decay_table")``."""
        ...
