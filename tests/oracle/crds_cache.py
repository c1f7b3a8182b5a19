"""A local CRDS cache made from a directory of references, so that romancal selects them offline. For tests alone."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

CONTEXT = "roman_0001.pmap"
TYPES = (
    "apcorr",
    "dark",
    "darkdecaysignal",
    "distortion",
    "dustmap",
    "epsf",
    "flat",
    "gain",
    "integralnonlinearity",
    "inverselinearity",
    "linearity",
    "mask",
    "photom",
    "readnoise",
    "refpix",
    "saturation",
)


class _Header(yaml.SafeLoader):  # type: ignore[misc,unused-ignore]
    """Reads tagged ASDF headers as plain trees; values that are not plain are of no interest here."""


def _plain(loader: Any, _suffix: str, node: Any) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_scalar(node)


_Header.add_multi_constructor("", _plain)


def read_meta(path: Path) -> dict[str, Any]:
    """``roman.meta`` of an ASDF file, without its arrays."""
    with path.open("rb") as file:
        head = b""
        while b"\n...\n" not in head and (chunk := file.read(1 << 16)):
            head += chunk
    text = head.split(b"\n...\n")[0].decode("utf-8", "replace")
    meta: dict[str, Any] = yaml.load(text, Loader=_Header)["roman"]["meta"]  # noqa: S506 - a safe loader with plain tags
    return meta


def _row(reference_type: str, path: Path) -> tuple[tuple[str, ...], str]:
    if reference_type == "dustmap":
        from astropy.io import fits

        return (str(fits.getheader(path)["FIELD"]).strip().lower(),), ""
    meta = read_meta(path)
    instrument = meta["instrument"]
    keys: tuple[str, ...] = {
        "darkdecaysignal": (),
        "readnoise": ("detector", "type"),
        "dark": ("detector", "type"),
        "distortion": ("detector", "optical_element"),
        "flat": ("detector", "optical_element"),
        "epsf": ("detector", "optical_element"),
    }.get(reference_type, ("detector",))
    values = []
    for key in keys:
        if key == "type":
            exposure = meta["exposure"]
            values.append(str(exposure.get("p_exptype") or exposure["type"]).strip("| "))
        else:
            values.append(str(instrument[key]))
    useafter = str(meta["useafter"]).replace("T", " ").split(".")[0]
    return tuple(values), useafter


def make_cache(references: Path, cache: Path) -> dict[str, str]:
    """Make a cache of all references in a directory and return the environment that selects it.

    Parameters
    ----------
    references : Path
        Folder with ASDF references (and dust maps), searched recursively.
    cache : Path
        Where to put the cache; references are linked, not copied.
    """
    import crds
    from crds.core import rmap

    specs = Path(crds.__file__).parent / "roman" / "specs"
    mappings = cache / "mappings" / "roman"
    files = cache / "references" / "roman" / "wfi"
    config = cache / "config" / "roman"
    for folder in (mappings, files, config):
        folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[tuple[str, ...], list[tuple[str, str]]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(p for p in references.rglob("*") if p.suffix in {".asdf", ".fits"}):
        reference_type = "dustmap" if path.suffix == ".fits" else str(read_meta(path)["reftype"]).lower()
        if reference_type not in TYPES:
            continue
        key, useafter = _row(reference_type, path)
        rows[reference_type][key].append((useafter, path.name))
        link = files / path.name
        link.unlink(missing_ok=True)
        link.symlink_to(path.resolve())
    imap_rows = []
    for spec in sorted(specs.glob("wfi_*.rmap")):
        reference_type = spec.stem.removeprefix("wfi_")
        name = f"roman_wfi_{reference_type}_0001.rmap"
        header = re.sub(r"'name' : '[^']*'", f"'name' : '{name}'", spec.read_text().split("selector", 1)[0])
        # a type without a file for this exposure is N/A, as a spectral exposure's flat: the oracle asks for all
        header = header.replace("'sha1sum'", "'reffile_required' : 'no',\n    'sha1sum'", 1)
        target = mappings / name
        target.write_text(f"{header}selector = {_selector(rows.get(reference_type, {}), header)}\n")
        imap_rows.append((reference_type, name))
        _checksum(rmap, target)
    _write_map(rmap, mappings / "roman_wfi_0001.imap", "INSTRUMENT", "('REFTYPE',)", imap_rows, "'instrument' : 'WFI',")
    _write_map(
        rmap, mappings / CONTEXT, "PIPELINE", "('ROMAN.META.INSTRUMENT.NAME',)", [("WFI", "roman_wfi_0001.imap")], ""
    )
    (config / "server_config").write_text(
        repr(
            {
                "operational_context": CONTEXT,
                "observatory": "roman",
                "status": "ok",
                "last_synced": "2026-01-01 00:00:00",
                "bad_files_set": [],
                "bad_files_list": [],
            }
        )
    )
    (config.parent.parent / "references" / "roman" / "ref_cache_subdir_mode").write_text("instrument\n")
    (config / "ref_cache_subdir_mode").write_text("instrument\n")
    return {
        "CRDS_PATH": str(cache),
        "CRDS_READONLY_CACHE": "1",
        "CRDS_CONTEXT": CONTEXT,
        "CRDS_OBSERVATORY": "roman",
        "CRDS_SERVER_URL": "http://127.0.0.1:9",
        "STPIPE_DISABLE_CRDS_STEPPARS": "true",
    }


def _selector(rows: dict[tuple[str, ...], list[tuple[str, str]]], header: str) -> str:
    dated = "UseAfter" in header or "START_TIME" in header
    lines = []
    for key, entries in rows.items():
        if dated:
            inside = " ".join(f"'{useafter}' : '{name}'," for useafter, name in entries)
            lines.append(f"    {key!r} : UseAfter({{ {inside} }}),")
        else:
            lines.append(f"    {key!r} : '{entries[-1][1]}',")
    return "Match({\n" + "\n".join(lines) + "\n})"


def _write_map(rmap: Any, path: Path, kind: str, parkey: str, rows: list[tuple[str, str]], extra: str) -> None:
    body = "\n".join(f"    '{key}' : '{name}'," for key, name in rows)
    path.write_text(
        f"header = {{\n    'derived_from' : 'made for tests',\n    {extra}\n    'mapping' : '{kind}',\n"
        f"    'name' : '{path.name}',\n    'observatory' : 'ROMAN',\n    'parkey' : {parkey},\n    'sha1sum' : '',\n"
        f"}}\n\nselector = {{\n{body}\n}}\n"
    )
    _checksum(rmap, path)


def _checksum(rmap: Any, path: Path) -> None:
    mapping = rmap.Mapping.from_file(str(path), ignore_checksum=True)
    mapping.write(str(path))
