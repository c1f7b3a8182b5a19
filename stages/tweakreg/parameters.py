"""Parameters of tweakreg under the mission's names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from stream.stage import StageParameters

__all__ = ["DEFAULT_REFCAT", "FitGeometry", "MatchAndFit", "TweakregParameters"]

DEFAULT_REFCAT = "GAIADR3_S3"

FitGeometry = Literal["shift", "rshift", "rscale", "general"]


@dataclass(frozen=True, slots=True)
class MatchAndFit:
    """One set of matching and fitting parameters: the relative or the absolute one."""

    searchrad: float
    separation: float
    tolerance: float
    use2dhist: bool
    minobj: int
    fitgeometry: FitGeometry
    nclip: int
    sigma: float
    average: bool = False
    """Whether image positions closer to each other than the separation are averaged before they are matched."""


class TweakregParameters(StageParameters):
    """Parameters of the joint alignment."""

    searchrad: float = Field(default=2.0, gt=0, description="Search radius between exposures, arcsec.")
    separation: float = Field(default=1.0, gt=0, description="Least distance of two sources of one list, arcsec.")
    tolerance: float = Field(default=0.7, gt=0, description="Largest distance of a matched pair, arcsec.")
    use2dhist: bool = Field(default=True, description="Estimate the shift from a 2-D histogram before matching.")
    minobj: int = Field(default=10, description="Least number of matches between exposures.")
    fitgeometry: FitGeometry = Field(default="general", description="Transformation fitted between exposures.")
    nclip: int = Field(default=3, ge=0, description="Rounds of clipping between exposures.")
    sigma: float = Field(default=3.0, gt=0, description="Clipping limit between exposures, in rms.")
    enforce_user_order: bool = Field(default=False, description="Align in the order of the association.")
    expand_refcat: bool = Field(
        default=False,
        description="Add sources of aligned exposures to the reference list (always, unless abs_refcat is default).",
    )
    abs_refcat: str = Field(default=DEFAULT_REFCAT, description="Name of the absolute catalog, or a table's path.")
    abs_searchrad: float = Field(default=6.0, gt=0, description="Search radius to the reference stars, arcsec.")
    abs_separation: float = Field(default=1.0, gt=0, description="As separation, for the reference stars.")
    abs_tolerance: float = Field(default=0.7, gt=0, description="As tolerance, for the reference stars.")
    abs_use2dhist: bool = Field(default=True, description="As use2dhist, for the reference stars.")
    abs_minobj: int = Field(default=10, description="Least number of reference stars, and of matches with them.")
    abs_fitgeometry: FitGeometry = Field(default="general", description="Transformation to the reference stars.")
    abs_nclip: int = Field(default=3, ge=0, description="As nclip, for the reference stars.")
    abs_sigma: float = Field(default=3.0, gt=0, description="As sigma, for the reference stars.")
    abs_repeats: Literal["lowest", "mean"] = Field(
        default="lowest",
        description="Which position of a source that several exposures saw is fitted to the reference stars: the lowest"
        " in the tangent plane (the mission's rule, off by more than two sigma of a position when fifty saw it), or"
        " the mean.",
    )
    vo_timeout: float = Field(default=1200.0, ge=0, description="Time limit of the catalog service, s.")
    save_abs_catalog: bool = Field(default=False, description="Of the field's step; refused when true.")
    catalog_format: str = Field(default="ascii.ecsv", description="Of the field's step alone; not to be changed.")
    catalog_path: str = Field(default="", description="Of the field's step alone; not to be changed.")
    update_source_catalog_coordinates: bool = Field(
        default=False, description="No effect: catalogs of aligned exposures are always refreshed."
    )
    saturated_member: Literal["skip_association", "skip_member"] = Field(
        default="skip_association",
        description="What one fully saturated member means: nobody is aligned (the mission's rule), or all others are.",
    )

    @field_validator("save_abs_catalog", "catalog_format", "catalog_path")
    @classmethod
    def _as_by_default(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what would be without effect: they are about files of a step that runs alone."""
        default = cls.model_fields[str(info.field_name)].default
        if value != default:
            raise ValueError(f"nothing here reads or writes such a catalog; expected {default!r}")
        return value

    @field_validator("abs_refcat")
    @classmethod
    def _default_refcat(cls, value: str) -> str:
        return value or DEFAULT_REFCAT

    @property
    def expands(self) -> bool:
        """Whether the reference list of the relative alignment grows."""
        return self.expand_refcat or self.abs_refcat != DEFAULT_REFCAT

    @property
    def relative(self) -> MatchAndFit:
        """Parameters between exposures."""
        return MatchAndFit(
            searchrad=self.searchrad,
            separation=self.separation,
            tolerance=self.tolerance,
            use2dhist=self.use2dhist,
            minobj=self.minobj,
            fitgeometry=self.fitgeometry,
            nclip=self.nclip,
            sigma=self.sigma,
        )

    @property
    def absolute(self) -> MatchAndFit:
        """Parameters to the reference stars."""
        return MatchAndFit(
            searchrad=self.abs_searchrad,
            separation=self.abs_separation,
            tolerance=self.abs_tolerance,
            use2dhist=self.abs_use2dhist,
            minobj=self.abs_minobj,
            fitgeometry=self.abs_fitgeometry,
            nclip=self.abs_nclip,
            sigma=self.abs_sigma,
            average=self.abs_repeats == "mean",
        )
