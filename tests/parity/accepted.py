"""The accepted differences from the reference implementation, in one place: the page's table and the tests use them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ACCEPTED", "AcceptedDifference"]


@dataclass(frozen=True, slots=True)
class AcceptedDifference:
    """What may differ, and why.

    Attributes
    ----------
    what, why : str
        Cells of the table in ``docs/parity.md``.
    whole : bool
        Whether all values of a comparison may be of this class; otherwise one in ten thousand at most.
    meta : tuple of str
        Keys below ``meta`` of the products that it is about.
    """

    what: str
    why: str
    whole: bool = False
    meta: tuple[str, ...] = ()


ACCEPTED = {
    "psf-unconstrained": AcceptedDifference(
        "PSF columns of fits that did not converge (bit 8 of `psf_flags`) or whose position error exceeds one pixel "
        "are not compared",
        "the normal equations are all but singular: rounding decides the numbers",
        whole=True,
    ),
    "software": AcceptedDifference(
        "`calibration_software_name`, `calibration_software_version`",
        "they say who made the product",
        meta=("calibration_software_name", "calibration_software_version"),
    ),
    "psf-shallow": AcceptedDifference(
        "PSF columns of at most one source in a hundred differ by more than 1e-5: positions by at most a thousandth of "
        "a pixel, the flux by a thousandth of its error, errors by a thousandth",
        "the minimum is shallow (a cosmic ray, a blend), and rounding decides where the solver stops in it",
    ),
    "standing": AcceptedDifference(
        "a ramp starts behind the last stage that its `cal_step` calls COMPLETE, and an image too",
        "the reference applies every step again to a ramp, and fails on an image",
    ),
    "outputs-without-wcs": AcceptedDifference(
        "outputs of ramp_fit and dark_current have `wcs` null", "the reference cannot save them"
    ),
    "ground-test-reads": AcceptedDifference(
        "ramps of ground tests leave out reset reads, reference reads and guide windows", "no step uses them"
    ),
    "dates": AcceptedDifference(
        "`file_date`, the text of `cal_logs`", "when and how, not what", meta=("file_date", "cal_logs")
    ),
    "input-name": AcceptedDifference(
        "`meta.image.filename` of catalog and segmentation map, where an exposure is given under another name, or "
        "further on its way, than to the reference; all other file names are compared",
        "it is the name of the file that was given",
        meta=("image.filename",),
    ),
    "catalog-name": AcceptedDifference(
        "`meta.source_catalog.tweakreg_catalog_name` holds the catalog's base name",
        "the reference writes the path as it was at the time of writing, which is wrong once files move",
        meta=("source_catalog.tweakreg_catalog_name",),
    ),
    "association-members": AcceptedDifference(
        "`meta.asn.expected_members`, `meta.asn.used_members` for associations",
        "additional: which members there should have been and which were used",
        meta=("asn",),
    ),
    "reference-names": AcceptedDifference(
        "`meta.ref_file.*` hold absolute paths, `crds` keeps the input's values, for references from a folder",
        "as the reference has it for an overridden file; with `crds://CONTEXT` both are as the reference writes them",
        meta=("ref_file",),
    ),
    "missing-parameters": AcceptedDifference(
        "a parameter reference (`pars-*`) that CRDS names but that is not in the cache fails the exposure",
        "the reference goes on with its defaults: other numbers without a word",
    ),
    "saturated-product": AcceptedDifference(
        "a fully saturated exposure's product can be written and read: `wcs` is null, and `dumo` is zero",
        "the reference fails to save it, for it leaves `wcs` out, and computes `dumo` from the saturated ramp",
        whole=True,
    ),
    "saturated-member": AcceptedDifference(
        "one fully saturated member leaves its whole association unaligned",
        "the mission's rule; `--set tweakreg.saturated_member=skip_member` gives the reference's",
    ),
    "var-flat-f2": AcceptedDifference(
        "`include_var_flat` gives f2 arrays", "the reference's f4 arrays break the schema, and cannot be saved"
    ),
    "nan-footprint": AcceptedDifference(
        "a NaN in the footprint leaves `s_region` as it was", "the reference stops with an error"
    ),
    "star-motions": AcceptedDifference(
        "a local star table with proper motions, parallaxes and an epoch is moved to the epoch of the exposure",
        "the reference takes tables from files as they are; a table without them is taken so here too",
    ),
    "psf-rounding": AcceptedDifference(
        "PSF-fit columns differ by up to 3e-6 relative", "the rounding inside the least-squares solver"
    ),
}
"""Class of difference by its name in the tests."""
