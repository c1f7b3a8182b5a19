"""Source catalog: detection, shapes, aperture and PSF photometry of one image. Not the alignment."""

from stages.source_catalog.stage import SourceCatalogParameters, SourceCatalogStage

__all__ = ["SourceCatalogParameters", "SourceCatalogStage"]
