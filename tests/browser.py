"""A real browser for the tests of HTML pages. Tests that import it are skipped without one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
if not CHROMIUM and os.environ.get("CI") != "true":
    pytest.skip("needs Chromium, which is not installed", allow_module_level=True)


def browse(page: Path | str, profile: Path, *extra: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM, "CI must have Chromium"
    command = (
        f"{CHROMIUM} --headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
        "--disable-background-networking --disable-component-update --disable-sync "
        "--virtual-time-budget=20000 --enable-logging=stderr"
    )
    return subprocess.run(
        [
            *command.split(),
            f"--user-data-dir={profile}",
            *extra,
            page.as_uri() if isinstance(page, Path) else page,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
