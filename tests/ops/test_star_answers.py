"""Stars that a catalog answered are kept: one question is put once, also when run again, killed, or replayed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from ops.pipeline_jobs import JobLimits, PipelineJobs
from ops.star_answers import StarAnswers
from stages.gaia import read_star_table
from stream.failure import FailureClass
from stream.process_runner import ProcessJobRunner
from stream.results import file_digest
from stream.store.obstore_store import open_store
from stream.worker import WorkFailedError
from tests.conftest import Simulated, run_in_process
from tests.ops.star_catalogs import StandIn, standing_in, star_columns, write_hats

CONE = {"ra": 10.0, "dec": 0.3, "radius": 0.4, "epoch": 2027.2}


@pytest.fixture(scope="module")
def stars() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return star_columns(1, rng.uniform(8, 12, 3000), rng.uniform(-2, 2, 3000))


def test_a_question_is_put_once_and_anew_only_for_another_salt_or_when_the_answer_is_gone(
    stars: dict[str, Any], tmp_path: Path
) -> None:
    async def scenario(service: StandIn) -> None:
        source = {"service": service.url, "catalog": "GAIADR3"}
        store = open_store(tmp_path / "store")
        async with ProcessJobRunner(slots=1, log_dir=tmp_path / "logs") as runner:
            jobs = PipelineJobs(
                runner=runner, environment={"gaia": source}, limits=JobLimits(1, 60.0, 2_000_000_000)
            )  # fmt: skip
            answers = StarAnswers(jobs=jobs, store=store, scratch=tmp_path / "scratch")

            async def ask(salt: str | None = None, **changed: float) -> Any:
                return await answers.answer(source, {**CONE, **changed}, patience=30.0, salt=salt, label="test")

            first = await ask()
            path = await store.fetch(first.key, tmp_path)
            assert (file_digest(path), path.stat().st_size) == (first.digest, first.size)
            assert len(read_star_table(path)) > 50
            service.stars = {name: values[:-1] for name, values in stars.items()}
            assert await ask() == first
            assert len(service.asked) == 1
            await ask(salt="again")
            assert (await ask(epoch=2027.4)).digest != first.digest
            assert len(service.asked) == 3
            path.unlink()
            await ask()
            assert len(service.asked) == 4
            assert list((tmp_path / "scratch").iterdir()) == []
            service.statuses = [400]
            with pytest.raises(WorkFailedError, match="refused with status 400") as refused:
                await ask(ra=11.0)
            assert refused.value.failure_class is FailureClass.PERMANENT

    with standing_in(stars) as service:
        anyio.run(scenario, service)


class HangingJobs:
    """Questions that are answered when a test says so."""

    def __init__(self) -> None:
        self.asked = 0
        self.answered = anyio.Event()

    async def run_patiently(self, entry: str, arguments: dict[str, Any], **_: Any) -> dict[str, Any]:
        self.asked += 1
        await self.answered.wait()
        await anyio.Path(arguments["out"]).write_bytes(b"stars")
        return {"digest": "0" * 64, "stars": 1}


def test_a_catalog_that_hangs_takes_no_more_slots_than_it_may(tmp_path: Path) -> None:
    async def scenario() -> None:
        jobs = HangingJobs()
        answers = StarAnswers(
            jobs=jobs,  # type: ignore[arg-type]
            store=open_store(tmp_path / "store"), scratch=tmp_path / "scratch", at_once=2,
        )  # fmt: skip

        async def ask(ra: float) -> None:
            await answers.answer({"service": "x"}, {**CONE, "ra": ra}, patience=1.0, salt=None, label="test")

        async with anyio.create_task_group() as tasks:
            for number in range(4):
                tasks.start_soon(ask, float(number))
            await anyio.sleep(0.3)
            assert jobs.asked == 2
            jobs.answered.set()
        assert jobs.asked == 4

    anyio.run(scenario)


def gaia_columns(simulated: Simulated) -> dict[str, Any]:
    """The simulation's star table under Gaia's own names, with motions of which a year makes a milliarcsecond."""
    import pyarrow.parquet as pq

    table = pq.read_table(simulated.gaia)
    columns = {name: table[name].to_numpy() for name in ("objID", "ra", "dec", "epoch", "mag")}
    names = {"objID": "source_id", "epoch": "ref_epoch", "mag": "phot_g_mean_mag"}
    columns = {names.get(name, name): values for name, values in columns.items()}
    columns["ref_epoch"] = columns["ref_epoch"] - 1.0
    moves = {
        name: np.full(table.num_rows, value) for name, value in {"pmra": 1.0, "pmdec": -0.5, "parallax": 0.2}.items()
    }
    return columns | moves


def test_a_run_is_aligned_alike_to_a_catalog_and_to_a_service_which_is_asked_once(
    simulated: Simulated, tmp_path: Path
) -> None:
    columns = gaia_columns(simulated)
    hats = write_hats(tmp_path / "hats", columns, order=6)

    def run(gaia: str | Path, *options: str) -> dict[str, Any]:
        report = run_in_process(simulated, simulated.exposures, tmp_path / "out", "--gaia", str(gaia), *options)
        assert report["exit"] == 0, report
        (exposure,) = report["exposures"]
        assert exposure["tweakreg"] == "COMPLETE", exposure
        found: dict[str, Any] = exposure
        return found

    with standing_in(columns) as service:
        by_service = run(service.url)
        assert len(service.asked) == 1
    # other parameters are another run, whose stars are there although nobody answers any more
    run(service.url, "--set", "tweakreg.abs_sigma=2.9")
    by_hats = run(hats)
    assert by_hats["shift_mas"] == pytest.approx(by_service["shift_mas"], abs=1e-4)
    store = tmp_path / "out" / ".rampstream" / "store"
    records = [json.loads(path.read_text()) for path in (store / "stars").glob("*.json")]
    assert len(records) == 2
    assert {"hats" in record["source"] for record in records} == {True, False}
    assert {record["stars"] for record in records} == {records[0]["stars"]}
