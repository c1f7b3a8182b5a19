"""At the end of the parity suite, and only if asked to: writes what it saw into the page (``make parity``)."""

from __future__ import annotations

import os

import pytest

from tests.parity.page import PAGE, accepted_table, lacking, results, with_section
from tests.parity.record import SEEN


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if os.environ.get("RAMPSTREAM_PARITY_PAGE") != "write":
        return
    missing = lacking(SEEN)
    if exitstatus != pytest.ExitCode.OK or missing:
        session.config.pluginmanager.getplugin("terminalreporter").write_line(
            f"docs/parity.md is left as it was: a test failed, or nothing was compared of {', '.join(missing) or '-'}"
        )
        session.exitstatus = max(int(exitstatus), 1)
        return
    text = with_section(PAGE.read_text(encoding="utf-8"), "results", results(SEEN))
    PAGE.write_text(with_section(text, "accepted differences", accepted_table()), encoding="utf-8")
