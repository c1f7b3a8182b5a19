"""A pinned CRDS context selects what the field's client selects, without network, and without a write to the cache."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.crds_context import CrdsContext
from stages.crds_references import CrdsReferences
from stream.failure import PermanentError
from tests.stages.input_files import write_reference
from tests.stages.small_crds import (
    CONTEXT,
    NOT_APPLICABLE,
    RULES,
    SmallCrds,
    facts,
    make_small_cache,
    rmap_name,
    write_rules,
)

TYPES = [*(t for t in RULES if t != "dustmap"), *NOT_APPLICABLE, "area"]

EXPOSURES = [
    facts(),
    facts(start="2026-12-31T23:59:59.999"),
    facts(start="2019-12-31T23:59:59.999"),
    facts(element="F062"),
    facts(element="F129"),
    facts("WFI02", "F129"),
    facts("WFI02", "F129", start="2026-06-01T00:00:00.000"),
    facts("WFI03", "F213"),
    facts("WFI03", "GRISM", "WFI_SPECTRAL"),
    facts("WFI18", kind="WFI_WFSC"),
]

CLIENT = """
import json, os, sys
import crds
answers = []
for parameters, reference_type in json.load(sys.stdin):
    try:
        found = crds.getreferences(parameters, reftypes=[reference_type], observatory="roman")[reference_type]
        answers.append("N/A" if "N/A" in found.upper() else os.path.basename(found))
    except LookupError as error:
        answers.append("lookup error")
json.dump(answers, sys.stdout)
"""


@pytest.fixture
def small(tmp_path: Path) -> SmallCrds:
    return make_small_cache(tmp_path / "crds")


def source(small: SmallCrds, tmp_path: Path, **options: Any) -> CrdsReferences:
    return CrdsReferences(CrdsContext(small.cache, CONTEXT), cache=tmp_path / "digests", **options)


def answers_of_the_client(small: SmallCrds, questions: list[tuple[dict[str, Any], str]]) -> list[str]:
    process = subprocess.run(
        [sys.executable, "-c", CLIENT],
        input=json.dumps(questions),
        env={**os.environ, **small.environment},
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[str] = json.loads(process.stdout)
    return found


def test_each_type_resolves_to_what_the_client_answers(small: SmallCrds) -> None:
    context = CrdsContext(small.cache, CONTEXT)

    def ours(reference_type: str, exposure: dict[str, Any]) -> str:
        try:
            return context.best(reference_type, exposure) or "N/A"
        except PermanentError:
            return "lookup error"

    questions, answers = [], []
    for exposure in EXPOSURES:
        for reference_type in TYPES:
            questions.append(({f"roman.meta.{k}": v for k, v in exposure["meta"].items()}, reference_type))
            answers.append(ours(reference_type, exposure))
    for field in ("north", "south"):
        questions.append(({"roman.meta.instrument.name": "wfi", "roman.field": field}, "dustmap"))
        answers.append(ours(f"dustmap_{field}", facts()))
    assert answers == answers_of_the_client(small, questions)
    assert len({*answers}) > 12
    assert {"N/A", "lookup error"} < {*answers}


def test_nothing_is_written_to_the_cache_and_no_connection_is_made(
    small: SmallCrds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.delenv("CRDS_READONLY_CACHE", raising=False)
    before = small.files()
    references = source(small, tmp_path)
    references.context.digest()
    name = references.select("flat", facts())
    assert name == "crds://roman_wfi_flat_0002.asdf"
    references.digest(name)
    opened = references.open(name)
    assert opened.recorded_name == name
    assert opened.array("data").shape == (2, 3)
    assert small.files() == before


def test_na_is_an_answer_where_the_pipeline_can_do_without(small: SmallCrds, tmp_path: Path) -> None:
    references = source(small, tmp_path)
    assert references.select("linearity", facts()) is None
    assert references.select("mask", facts("WFI02")) is None
    with pytest.raises(PermanentError, match=rf"type gain is N/A in the CRDS context {CONTEXT} for detector WFI02"):
        references.select("gain", facts("WFI02"))


def test_a_failed_look_up_tells_type_context_and_values(small: SmallCrds, tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match=rf"type flat in the CRDS context {CONTEXT}: .*DETECTOR = WFI18"):
        source(small, tmp_path).select("flat", facts("WFI18"))


def test_nothing_about_dust_maps_costs_the_exposure(small: SmallCrds, tmp_path: Path) -> None:
    references = source(small, tmp_path)
    assert references.select("dustmap_north", facts()) == "crds://roman_wfi_dustmap_0001.fits"
    assert references.select("dustmap_south", facts()) is None


def test_pinned_files_win(small: SmallCrds, tmp_path: Path) -> None:
    mine = write_reference(tmp_path / "mine.asdf", "flat", element="F158", data=np.ones(3, "f4"))
    references = source(small, tmp_path, pinned={"flat": mine, "mask": "N/A"})
    assert references.select("flat", facts()) == str(mine)
    assert references.open(str(mine)).recorded_name == str(mine)
    assert references.select("mask", facts()) is None


def test_a_flat_cache_is_read_too(small: SmallCrds, tmp_path: Path) -> None:
    for path in small.references.iterdir():
        path.rename(small.references.parent / path.name)
    (small.config / "ref_cache_subdir_mode").write_text("flat")
    assert source(small, tmp_path).digest("crds://roman_wfi_gain_0001.asdf")


def test_a_missing_file_is_told_with_what_fetches_it(small: SmallCrds, tmp_path: Path) -> None:
    (small.references / "roman_wfi_flat_0002.asdf").unlink()
    references = source(small, tmp_path)
    name = references.select("flat", facts())
    assert name is not None
    with pytest.raises(PermanentError, match=rf"flat_0002\.asdf is not in the CRDS cache .* sync crds://{CONTEXT}"):
        references.digest(name)


def test_a_file_that_changes_while_it_is_in_use_is_refused(small: SmallCrds, tmp_path: Path) -> None:
    references = source(small, tmp_path)
    references.digest("crds://roman_wfi_gain_0001.asdf")
    write_reference(small.references / "roman_wfi_gain_0001.asdf", "gain", data=np.ones(100, "f4"))
    with pytest.raises(PermanentError, match="changed while it was in use"):
        references.open("crds://roman_wfi_gain_0001.asdf")


@pytest.mark.parametrize("name", [CONTEXT, "roman_wfi_0001.imap", rmap_name("flat")])
def test_a_missing_or_damaged_mapping_is_told_by_name(small: SmallCrds, name: str) -> None:
    path = small.mappings / name
    path.write_text(path.read_text().replace("made by hand", "made by hund"))
    with pytest.raises(PermanentError, match=rf"a mapping is damaged: .*{name}"):
        CrdsContext(small.cache, CONTEXT).digest()
    path.unlink()
    with pytest.raises(PermanentError, match=rf"{name} is not in this CRDS cache; fetch it with"):
        CrdsContext(small.cache, CONTEXT).digest()


def test_contexts_of_one_name_differ_by_their_digest(small: SmallCrds, tmp_path: Path) -> None:
    other = make_small_cache(tmp_path / "other")
    first = CrdsContext(small.cache, CONTEXT).digest()
    assert CrdsContext(other.cache, CONTEXT).digest() == first
    parkey, match, extra = RULES["flat"]
    write_rules(other.mappings, {**RULES, "flat": (parkey, match.replace("flat_0002", "flat_0001"), extra)})
    assert CrdsContext(other.cache, CONTEXT).digest() != first


def test_what_the_server_marked_as_invalid_is_refused(small: SmallCrds, tmp_path: Path) -> None:
    small.tell(bad_files_list=["roman_wfi_flat_0002.asdf"])
    with pytest.raises(PermanentError, match=r"flat_0002\.asdf, .* is marked as scientifically invalid"):
        source(small, tmp_path).select("flat", facts())
    small.tell(bad_files_list=[rmap_name("gain")])
    with pytest.raises(PermanentError, match=rf"scientifically invalid \({rmap_name('gain')}\)"):
        CrdsContext(small.cache, CONTEXT).digest()


def test_only_pipeline_mappings_are_contexts(small: SmallCrds) -> None:
    with pytest.raises(PermanentError, match="expected the name of a pipeline mapping"):
        CrdsContext(small.cache, "roman_wfi_0001.imap")
