"""Statistics of the final image for ``meta.statistics``. Not a background estimate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stages.dq import PixelDQ

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["image_statistics"]

_SIGMA_PER_MAD = 1.482602218505602
"""Standard deviation of a normal distribution over its median absolute deviation, 1 / Phi^-1(3/4)."""

_UNKNOWN = -1.0


def image_statistics(
    data: NDArray[np.float32], dq: NDArray[np.uint32], err: NDArray[np.floating[Any]]
) -> dict[str, float]:
    """Median, scatter and fraction of the good pixels.

    Parameters
    ----------
    data : ndarray, f4, (ny, nx)
        Rate image, DN/s.
    dq : ndarray, u4, (ny, nx)
        Flags; a pixel is good without DO_NOT_USE.
    err : ndarray, f2 or f4, (ny, nx)
        Error, DN/s; a pixel is good where it is positive.

    Returns
    -------
    dict
        ``zodiacal_light`` (-1: not estimated), ``image_median`` and ``image_rms`` (1.4826 times the median absolute
        deviation) in DN/s, NaN without a good pixel, and ``good_pixel_fraction``. Computed in f4.

    Notes
    -----
    Two selections (O(n) each) on one copy of the good pixels.
    """
    good = np.isfinite(data)
    good &= (dq & np.uint32(PixelDQ.DO_NOT_USE)) == 0
    good &= err > 0
    values = data[good]
    fraction = values.size / data.size
    if values.size == 0:
        return _statistics(float("nan"), float("nan"), 0.0)
    median = np.median(values, overwrite_input=True)
    np.subtract(values, median, out=values)
    np.abs(values, out=values)
    deviation = np.median(values, overwrite_input=True)
    return _statistics(float(median), float(deviation * _SIGMA_PER_MAD), fraction)


def _statistics(median: float, rms: float, fraction: float) -> dict[str, float]:
    return {
        "zodiacal_light": _UNKNOWN,
        "image_median": median,
        "image_rms": rms,
        "good_pixel_fraction": fraction,
    }
