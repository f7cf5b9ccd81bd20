"""The run store on SQLite, and what concerns files and URLs."""

from pathlib import Path

import pytest

from cuvee.testing.store import StoreSuite


class TestSQLite(StoreSuite):
    @pytest.fixture
    def store_url(self, tmp_path: Path) -> str:
        return str(tmp_path / "new" / "store.sqlite")
