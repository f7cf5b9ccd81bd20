"""Alembic's entry point. It migrates in the transaction of the connection that the store passes."""

from alembic import context

from cuvee.fleet.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
    render_as_batch=True,
)
context.run_migrations()
