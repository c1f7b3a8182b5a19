"""A tiny CRDS cache, written by hand: rules of all kinds, and reference files of a few bytes. Without the client."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.asdf_arrays import write_asdf
from tests.stages.input_files import write_reference

CONTEXT = "roman_0001.pmap"
DATE = "'ROMAN.META.EXPOSURE.START_TIME'"
DETECTOR = "'ROMAN.META.INSTRUMENT.DETECTOR'"
ELEMENT = "'ROMAN.META.INSTRUMENT.OPTICAL_ELEMENT'"
TYPE = "'ROMAN.META.EXPOSURE.TYPE'"

_BY_DETECTOR = f"(({DETECTOR},), ({DATE},))"
_BY_ELEMENT = f"(({DETECTOR}, {ELEMENT}), ({DATE},))"
_BY_TYPE = f"(({DETECTOR}, {TYPE}), ({DATE},))"
_BY_TYPE_ALONE = f"(({TYPE},), ({DATE},))"


def row(*files: tuple[str, str]) -> str:
    """Files by USEAFTER."""
    return "UseAfter({" + ", ".join(f"'{useafter}': '{name}'" for useafter, name in files) + "})"


OLD, NEW = "2020-01-01 00:00:00", "2027-01-01 00:00:00"

RULES: dict[str, tuple[str, str, str]] = {
    "flat": (
        _BY_ELEMENT,
        "{('WFI01', 'F158'): " + row((OLD, "roman_wfi_flat_0001.asdf"), (NEW, "roman_wfi_flat_0002.asdf"))
        + ", ('WFI01', 'F062|F087'): " + row((OLD, "roman_wfi_flat_0003.asdf"))
        + ", ('WFI0*', 'F129'): " + row((OLD, "roman_wfi_flat_0004.asdf"))
        + ", ('WFI02', 'F129'): " + row((NEW, "roman_wfi_flat_0005.asdf"))
        + ", ('WFI03', 'N/A'): " + row((OLD, "roman_wfi_flat_0006.asdf"))
        + ", ('WFI03', 'GRISM'): 'N/A'}",
        "",
    ),
    "gain": (_BY_DETECTOR, "{('WFI01',): " + row((OLD, "roman_wfi_gain_0001.asdf")) + ", ('WFI02',): 'N/A'}", ""),
    "readnoise": (
        _BY_TYPE,
        "{('WFI01|WFI02|WFI03', 'WFI_IMAGE|WFI_WFSC'): " + row((OLD, "roman_wfi_readnoise_0001.asdf")) + "}",
        "",
    ),
    "mask": (
        _BY_DETECTOR, "{('WFI01',): " + row((OLD, "roman_wfi_mask_0001.asdf")) + "}", "'reffile_required' : 'no',"
    ),
    "darkdecaysignal": (f"((), ({DATE},))", "{(): " + row((OLD, "roman_wfi_darkdecaysignal_0001.asdf")) + "}", ""),
    "apcorr": (_BY_DETECTOR, "{('WFI01',): " + row((OLD, "roman_wfi_apcorr_0001.asdf")) + "}", ""),
    "epsf": (_BY_ELEMENT, "{('WFI01', 'F158'): " + row((OLD, "roman_wfi_epsf_0001.asdf")) + "}", ""),
    "dustmap": ("(('ROMAN.FIELD',),)", "{('NORTH',): 'roman_wfi_dustmap_0001.fits'}", ""),
    "pars-rampfitstep": (f"((), ({DATE},))", "{(): " + row((OLD, "roman_wfi_pars-rampfitstep_0001.asdf")) + "}", ""),
    "pars-exposurepipeline": (
        _BY_TYPE_ALONE,
        "{('WFI_IMAGE',): " + row((NEW, "roman_wfi_pars-exposurepipeline_0001.asdf")) + "}",
        "",
    ),
}  # fmt: skip
NOT_APPLICABLE = (
    "dark", "distortion", "integralnonlinearity", "inverselinearity", "linearity", "photom", "refpix", "saturation",
)  # fmt: skip
"""Types that are N/A for the whole instrument."""

RAMP_FIT_PARAMETERS: dict[str, Any] = {"rejection_threshold": 5.0, "include_var_rnoise": True, "suffix": "rampfit"}
PIPELINE_STEPS: list[dict[str, Any]] = [
    {
        "class": "romancal.ramp_fitting.ramp_fit_step.RampFitStep",
        "name": "rampfit",
        "parameters": {"rejection_threshold": 6.0},
    },
    {"class": "romancal.flatfield.flat_field_step.FlatFieldStep", "name": "flatfield", "parameters": {"skip": True}},
]


@dataclass(frozen=True)
class SmallCrds:
    """The cache, and the variables by which the client finds it."""

    cache: Path

    @property
    def mappings(self) -> Path:
        return self.cache / "mappings" / "roman"

    @property
    def references(self) -> Path:
        return self.cache / "references" / "roman" / "wfi"

    @property
    def config(self) -> Path:
        return self.cache / "config" / "roman"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "CRDS_PATH": str(self.cache),
            "CRDS_READONLY_CACHE": "1",
            "CRDS_CONTEXT": CONTEXT,
            "CRDS_OBSERVATORY": "roman",
            "CRDS_SERVER_URL": "http://127.0.0.1:9",
        }

    def files(self) -> dict[str, bytes]:
        """Content of every file, by its path."""
        return {
            str(path.relative_to(self.cache)): path.read_bytes() for path in self.cache.rglob("*") if path.is_file()
        }

    def tell(self, **values: Any) -> None:
        """Write what a server has told."""
        told = {
            "operational_context": CONTEXT, "observatory": "roman", "status": "ok", "bad_files_list": [],
            "last_synced": "2026-01-01 00:00:00", "force_remote_mode": False, **values,
        }  # fmt: skip
        (self.config / "server_config").write_text(repr(told))


def write_mapping(folder: Path, name: str, header: str, selector: str) -> None:
    """Write a mapping with the checksum that it must have."""
    lines = [
        "header = {\n",
        f"    'name' : '{name}',\n",
        "    'observatory' : 'ROMAN',\n",
        *header.splitlines(True),
        "}\n",
    ]
    text = "".join(lines) + f"\nselector = {selector}\n"
    digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
    (folder / name).write_text(
        "".join([*lines[:-1], f"    'sha1sum' : '{digest}',\n", "}\n"]) + f"\nselector = {selector}\n"
    )


def write_rules(folder: Path, rules: dict[str, tuple[str, str, str]]) -> None:
    """Write a context with the rules, each type's in a mapping of its own."""
    for reference_type, (parkey, match, extra) in rules.items():
        classes = "('Match', 'UseAfter')" if DATE in parkey else "('Match',)"
        kind = reference_type.upper()
        header = (
            f"    'classes' : {classes},\n    'derived_from' : 'made by hand',\n    'file_ext' : '.asdf',\n"
            f"    'filekind' : '{kind}',\n    'filetype' : '{kind}',\n    'instrument' : 'WFI',\n"
            f"    'mapping' : 'REFERENCE',\n    'parkey' : {parkey},\n    'suffix' : '{reference_type}',\n"
            f"    'text_descr' : 'made by hand',\n" + (f"    {extra}\n" if extra else "")
        )
        write_mapping(folder, rmap_name(reference_type), header, f"Match({match})")
    entries = {kind: rmap_name(kind) for kind in rules} | dict.fromkeys(NOT_APPLICABLE, "N/A")
    _write_context(folder, "roman_wfi_0001.imap", "INSTRUMENT", "('REFTYPE',)", entries, "    'instrument' : 'WFI',\n")
    _write_context(folder, CONTEXT, "PIPELINE", "('ROMAN.META.INSTRUMENT.NAME',)", {"WFI": "roman_wfi_0001.imap"}, "")


def rmap_name(reference_type: str) -> str:
    """Name of the mapping of a type."""
    return f"roman_wfi_{reference_type}_0001.rmap"


def _write_context(folder: Path, name: str, kind: str, parkey: str, entries: dict[str, str], extra: str) -> None:
    header = f"    'derived_from' : 'made by hand',\n{extra}    'mapping' : '{kind}',\n    'parkey' : {parkey},\n"
    selector = "{\n" + "".join(f"    '{key}' : '{value}',\n" for key, value in entries.items()) + "}"
    write_mapping(folder, name, header, selector)


def make_small_cache(cache: Path) -> SmallCrds:
    """Make the cache."""
    made = SmallCrds(cache)
    for folder in (made.mappings, made.references, made.config):
        folder.mkdir(parents=True)
    write_rules(made.mappings, RULES)
    (made.config / "ref_cache_subdir_mode").write_text("instrument\n")
    made.tell()
    named = {name for _, match, _ in RULES.values() for name in match.split("'") if name.endswith((".asdf", ".fits"))}
    for number, name in enumerate(sorted(named)):
        _write_file(made.references / name, number)
    return made


def _write_file(path: Path, number: int) -> None:
    reference_type = path.name.removeprefix("roman_wfi_").rpartition("_")[0]
    if path.suffix == ".fits":
        from astropy.io import fits

        fits.PrimaryHDU(np.full((2, 2), number, "f4")).writeto(path)
    elif reference_type == "pars-rampfitstep":
        write_parameters(path, "RampFitStep", RAMP_FIT_PARAMETERS)
    elif reference_type == "pars-exposurepipeline":
        write_parameters(path, "ExposurePipeline", {"suffix": "cal"}, steps=PIPELINE_STEPS)
    else:
        write_reference(path, reference_type, data=np.full((2, 3), number, "f4"))


def write_parameters(
    path: Path, name: str, parameters: dict[str, Any], *, steps: list[dict[str, Any]] | None = None
) -> Path:
    """Write a step's parameter file as the field has it."""
    tree: dict[str, Any] = {"class": f"romancal.module.{name}", "name": name, "parameters": parameters}
    write_asdf(path, tree if steps is None else {**tree, "steps": steps})
    return path


def facts(
    detector: str = "WFI01", element: str = "F158", kind: str = "WFI_IMAGE", start: str = "2027-03-01T00:00:00.123"
) -> dict[str, Any]:
    """Facts of an exposure, as far as references are selected by them."""
    return {
        "detector": detector,
        "optical_element": element,
        "exposure_type": kind,
        "start_time": start,
        "meta": {
            "instrument.name": "WFI",
            "instrument.detector": detector,
            "instrument.optical_element": element,
            "exposure.type": kind,
            "exposure.start_time": start,
            "exposure.nresultants": 3,
            "exposure.truncated": False,
        },
    }
