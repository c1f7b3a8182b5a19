"""The nearest other source of each source. Not the grouping for PSF fits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["nearest_neighbours"]

NOWHERE = -1000.0
"""Where non-finite centroids are put: far from the image, so that a tree can hold them."""


def nearest_neighbours(
    labels: NDArray[np.int64], x: NDArray[np.float32], y: NDArray[np.float32], pixel_scale: float
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Label and distance (arcsec) of the nearest other centroid.

    Parameters
    ----------
    labels : ndarray, i8, (n,)
        Labels of the sources.
    x, y : ndarray, f4, (n,)
        Centroids, pixels.
    pixel_scale : float
        Arcsec per pixel.

    Returns
    -------
    label : ndarray, i4, (n,)
        -1 for a single source or a non-finite centroid.
    distance : ndarray, f4, (n,)
        NaN for those.
    """
    from scipy.spatial import cKDTree

    label = np.full(x.size, -1, dtype=np.int32)
    distance = np.full(x.size, np.nan, dtype=np.float32)
    if x.size <= 1:
        return label, distance
    finite = np.isfinite(x) & np.isfinite(y)
    positions = np.where(finite[:, None], np.stack([x, y], axis=1).astype(np.float64), NOWHERE)
    apart, index = cKDTree(positions).query(positions, k=2)
    label[finite] = labels[index[finite, 1]]
    distance[finite] = apart[finite, 1] * pixel_scale
    return label, distance
