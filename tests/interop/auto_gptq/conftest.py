"""A run that proves nothing fails: here no test may be skipped, and some must pass."""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """All skipped would be exit status 0."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if exitstatus == pytest.ExitCode.OK and reporter is not None:
        counts = {outcome: len(reporter.stats.get(outcome, ())) for outcome in ("passed", "skipped")}
        if counts["skipped"] or not counts["passed"]:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
