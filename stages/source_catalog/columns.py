"""The columns of the source catalog: names in product order, types, units and descriptions. No values.

Descriptions are those of the RAD schema ``source_catalog_columns``.
"""

# ruff: noqa: E501 - the descriptions are the schema's

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["COLUMNS", "EMPTY_COLUMNS", "FORCED_MEASURED", "FORCED_PREFIX", "FORCED_SHAPES", "PSF_COLUMNS", "Column"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column: NumPy type code, astropy unit (None for none) and the schema's description."""

    name: str
    dtype: str
    unit: str | None
    description: str


COLUMNS: tuple[Column, ...] = (
    Column("label", "i4", None, "Label of the source segment in the segmentation image"),
    Column(
        "flagged_spatial_id",
        "i8",
        None,
        "Bit flag encoding the overlap flag, projection, skycell and pixel coordinates of the source",
    ),
    Column("x_centroid", "f4", "pix", "Column coordinate of the source centroid from image moments (0 indexed)"),
    Column(
        "y_centroid",
        "f4",
        "pix",
        "Row coordinate of the source centroid in the detection image from image moments (0 indexed)",
    ),
    Column("x_centroid_err", "f4", "pix", "Uncertainty x_centroid"),
    Column("y_centroid_err", "f4", "pix", "Uncertainty on y_centroid"),
    Column(
        "x_centroid_win",
        "f4",
        "pix",
        "Column coordinate of the windowed source centroid in the detection image from image moments (0 indexed)",
    ),
    Column(
        "y_centroid_win",
        "f4",
        "pix",
        "Row coordinate of the windowed source centroid in the detection image from image moments (0 indexed)",
    ),
    Column("x_centroid_win_err", "f4", "pix", "Uncertainty on x_centroid_win"),
    Column("y_centroid_win_err", "f4", "pix", "Uncertainty on y_centroid_win"),
    Column("x_psf", "f4", "pix", "Column coordinate of the source from PSF fitting (0 indexed)"),
    Column("x_psf_err", "f4", "pix", "Uncertainty in x_psf"),
    Column("y_psf", "f4", "pix", "Row coordinate of the source from PSF fitting (0 indexed)"),
    Column("y_psf_err", "f4", "pix", "Uncertainty on y_psf"),
    Column("ra", "f8", "deg", "Best estimate of the right ascension (ICRS)"),
    Column("dec", "f8", "deg", "Best estimate of the declination (ICRS)"),
    Column("ra_centroid", "f8", "deg", "Right ascension (ICRS) of the source centroid"),
    Column("dec_centroid", "f8", "deg", "Declination of the source centroid (ICRS)"),
    Column("ra_centroid_err", "f4", "arcsec", "Uncertainty in ra_centroid"),
    Column("dec_centroid_err", "f4", "arcsec", "Uncertainty in dec_centroid"),
    Column("ra_centroid_win", "f8", "deg", "Right ascension (ICRS) of the windowed source centroid"),
    Column("dec_centroid_win", "f8", "deg", "Declination (ICRS) of the windowed source centroid"),
    Column("ra_centroid_win_err", "f4", "arcsec", "Uncertainty in ra_centroid_win"),
    Column("dec_centroid_win_err", "f4", "arcsec", "Uncertainty in dec_centroid_win"),
    Column("ra_psf", "f8", "deg", "Right ascension (ICRS) of the PSF-fitted position"),
    Column("dec_psf", "f8", "deg", "Declination (ICRS) of the PSF-fitted position"),
    Column("ra_psf_err", "f4", "arcsec", "Uncertainty in ra_psf"),
    Column("dec_psf_err", "f4", "arcsec", "Uncertainty in dec_psf"),
    Column("bbox_xmin", "i4", None, "Column index of the left edge of the source bounding box (0 indexed)"),
    Column("bbox_xmax", "i4", None, "Column index of the right edge of the source bounding box (0 indexed)"),
    Column("bbox_ymin", "i4", None, "Row index of the bottom edge of the source bounding box (0 indexed)"),
    Column("bbox_ymax", "i4", None, "Row index of the top edge of the source bounding box (0 indexed)"),
    Column("segment_area", "f4", "arcsec2", "Area of the source segment"),
    Column("semimajor", "f4", "arcsec", "Length of the source semimajor axis computed from image moments"),
    Column("semiminor", "f4", "arcsec", "Length of the source semiminor axis computed from image moments"),
    Column(
        "fwhm",
        "f4",
        "arcsec",
        "Circularized full width at half maximum (FWHM) calculated from the semimajor and semiminor axes as 2*sqrt(ln(2) * (semimajor**2 + semiminor**2))",
    ),
    Column("ellipticity", "f4", None, "Source ellipticity as 1 - (semimajor / semiminor)"),
    Column(
        "orientation_pix",
        "f4",
        "deg",
        "Angle measured counter-clockwise from the positive X axis to the source major axis computed from image moments",
    ),
    Column(
        "orientation_sky", "f4", "deg", "Position angle from North of the source major axis computed from image moments"
    ),
    Column("cxx", "f4", "1 / arcsec2", "Coefficient for the x**2 term in the generalized quadratic ellipse equation"),
    Column("cxy", "f4", "1 / arcsec2", "Coefficient for the x*y term in the generalized quadratic ellipse equation"),
    Column("cyy", "f4", "1 / arcsec2", "Coefficient for the y**2 term in the generalized quadratic ellipse equation"),
    Column("kron_radius", "f4", "arcsec", "First-moment radius measured in the detection image."),
    Column("nn_label", "i4", None, "Segment label of the nearest neighbor in this skycell"),
    Column("nn_distance", "f4", "arcsec", "Distance to the nearest neighbor in this skycell"),
    Column("sharpness", "f4", None, "Photutils DAOFinder sharpness statistic"),
    Column("roundness1", "f4", None, "Photutils DAOFinder roundness1 statistic"),
    Column(
        "is_extended", "b1", None, "Flag indicating that the source appears to be more extended than a point source"
    ),
    Column(
        "fluxfrac_radius_50",
        "f4",
        "arcsec",
        "Radius of a circle centered on the source centroid that encloses 50% of the Kron flux",
    ),
    Column("aper_bkg_flux", "f4", "nJy / arcsec2", "Local background estimated within a circular annulus"),
    Column(
        "aper_bkg_flux_err", "f4", "nJy / arcsec2", "Uncertainty in local background estimated in a circular annulus"
    ),
    Column("aper01_flux", "f4", "nJy", "Flux within circular aperture (radius in tenths of arcsec)"),
    Column("aper01_flux_err", "f4", "nJy", "Uncertainty in flux within circular aperture"),
    Column("aper02_flux", "f4", "nJy", "Flux within circular aperture (radius in tenths of arcsec)"),
    Column("aper02_flux_err", "f4", "nJy", "Uncertainty in flux within circular aperture"),
    Column("aper04_flux", "f4", "nJy", "Flux within circular aperture (radius in tenths of arcsec)"),
    Column("aper04_flux_err", "f4", "nJy", "Uncertainty in flux within circular aperture"),
    Column("aper08_flux", "f4", "nJy", "Flux within circular aperture (radius in tenths of arcsec)"),
    Column("aper08_flux_err", "f4", "nJy", "Uncertainty in flux within circular aperture"),
    Column("aper16_flux", "f4", "nJy", "Flux within circular aperture (radius in tenths of arcsec)"),
    Column("aper16_flux_err", "f4", "nJy", "Uncertainty in flux within circular aperture"),
    Column("psf_flux", "f4", "nJy", "Total PSF flux"),
    Column("psf_flux_err", "f4", "nJy", "Uncertainty in psf_flux"),
    Column("segment_flux", "f4", "nJy", "Isophotal flux"),
    Column("segment_flux_err", "f4", "nJy", "Uncertainty in segment_flux"),
    Column("kron_flux", "f4", "nJy", "Flux within the elliptical Kron aperture"),
    Column("kron_flux_err", "f4", "nJy", "Uncertainty in kron_<band>_flux_err"),
    Column("kron_abmag", "f4", "mag(AB)", "AB magnitude within the elliptical Kron aperture"),
    Column("kron_abmag_err", "f4", "mag(AB)", "Uncertainty in kron_abmag"),
    Column("warning_flags", "i4", None, "Warning bit flags (0=good)"),
    Column("image_flags", "i4", None, "Image quality bit flags (0=good)"),
    Column("psf_flags", "i4", None, "PSF fitting bit flags (0 = good)"),
    Column("psf_gof", "f4", None, "PSF goodness of fit metric"),
    Column(
        "dust_ebv",
        "f4",
        None,
        "Estimated dust extinction in B-V, taken by default from the map of Schlegel, Finkbeiner, and Davis (1998)",
    ),
)

PSF_COLUMNS = frozenset(
    {
        *("x_psf", "x_psf_err", "y_psf", "y_psf_err", "ra_psf", "dec_psf", "ra_psf_err", "dec_psf_err"),
        *("psf_flux", "psf_flux_err", "psf_flags", "psf_gof"),
    }
)
"""Columns that are there only with PSF photometry."""

EMPTY_COLUMNS: tuple[str, ...] = (
    *("flagged_spatial_id", "bbox_xmax", "bbox_xmin", "bbox_ymax", "bbox_ymin", "image_flags", "label", "segment_area"),
    *("dec", "dec_centroid", "dec_centroid_err", "dec_centroid_win", "dec_centroid_win_err"),
    *("ra", "ra_centroid", "ra_centroid_err", "ra_centroid_win", "ra_centroid_win_err"),
    *("x_centroid", "x_centroid_err", "x_centroid_win", "x_centroid_win_err"),
    *("y_centroid", "y_centroid_err", "y_centroid_win", "y_centroid_win_err"),
    *("aper_bkg_flux", "aper_bkg_flux_err", "aper00_flux", "aper00_flux_err", "kron_abmag", "kron_abmag_err"),
    *("kron_flux", "kron_flux_err", "segment_flux", "segment_flux_err", "warning_flags", "cxx", "cxy", "cyy"),
    *("ellipticity", "fluxfrac_radius_50", "is_extended", "fwhm", "kron_radius", "orientation_pix", "orientation_sky"),
    *("roundness1", "semimajor", "semiminor", "sharpness", "nn_distance", "nn_label", "dust_ebv"),
)
"""Columns of a catalog without sources, in the schema's order; ``aper00`` stands for the five apertures."""

FORCED_PREFIX = "forced_"

FORCED_MEASURED = PSF_COLUMNS | {
    *("sharpness", "roundness1", "is_extended", "fluxfrac_radius_50", "warning_flags"),
    *(c.name for c in COLUMNS if c.name.startswith(("aper", "segment_flux", "kron_flux", "kron_abmag"))),
}
"""Columns of a forced catalog that are measured in this image within another image's segments."""

FORCED_SHAPES: tuple[str, ...] = (
    *("flagged_spatial_id", "x_centroid", "y_centroid", "x_centroid_err", "y_centroid_err", "ra", "dec"),
    *("ra_centroid", "dec_centroid", "ra_centroid_err", "dec_centroid_err", "semimajor", "semiminor", "fwhm"),
    *("ellipticity", "orientation_pix", "orientation_sky", "cxx", "cxy", "cyy", "kron_radius"),
    *("nn_label", "nn_distance"),
)
"""Columns of a forced catalog that come from this image's own detection image, appended with the prefix."""
