"""`cuvee dash`: a live local page over the store."""

from __future__ import annotations

from typing import Annotated

import typer

from cuvee.cli.display.lines import say
from cuvee.cli.options import StoreOption


def dash(
    store: StoreOption = None,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")
    ] = 8350,
    open_page: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Serve a live page about the runs of a store to this computer, until Ctrl-C.

    It shows runs, losses, mixtures, what the guard did and the fleet, and changes nothing. Needs the
    extra `dash`.

    Example: cuvee dash --store runs/cuvee.db --open
    """
    from contextlib import suppress

    from cuvee.core.errors import ConfigError, pip_install
    from cuvee.recipes.stores import open_store

    try:
        from cuvee.recipes.dashboard.app import HOST, server
        from cuvee.recipes.dashboard.view import Dashboard
    except ModuleNotFoundError as error:
        raise ConfigError(f"cuvee dash needs {error.name}: {pip_install('dash')}") from None
    with open_store(store, must_exist=True) as opened:
        try:
            serving = server(Dashboard(opened), port)
        except (OSError, SystemExit):  # werkzeug exits if the port is taken
            raise ConfigError(f"port {port} cannot be used: give another with --port") from None
        address = f"http://{HOST}:{serving.server_port}"
        say(f"{address} (Ctrl-C ends it)")
        if open_page:
            typer.launch(address)
        with suppress(KeyboardInterrupt):
            serving.serve_forever()
