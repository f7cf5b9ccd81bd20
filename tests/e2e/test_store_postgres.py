"""The same promises on a real PostgreSQL server, which this module starts."""

import os
import uuid
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from cuvee.testing.postgres import PostgresServer, find_binaries, postgres_server
from cuvee.testing.store import StoreSuite


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    if find_binaries() is None and os.environ.get("CI") != "true":
        pytest.skip("no PostgreSQL server is installed")
    with postgres_server() as server:
        yield server


@pytest.fixture
def store_url(server: PostgresServer) -> str:
    """A schema of its own in the server's database."""
    name = f"s{uuid.uuid4().hex}"
    engine = sa.create_engine(server.url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.execute(sa.schema.CreateSchema(name))
    engine.dispose()
    return f"{server.url}?options=-csearch_path%3D{name}"


class TestPostgreSQL(StoreSuite):
    @pytest.fixture
    def store_url(self, store_url: str) -> str:
        return store_url
