"""`cuvee steer`: an operator's requests to a run that is training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cuvee.cli.display.lines import say
from cuvee.cli.options import StoreOption


def steer(
    run: Annotated[str, typer.Argument(help="The run's id, or the beginning of it.")],
    freeze: Annotated[
        bool, typer.Option("--freeze", help="Keep the mixture that is in force.")
    ] = False,
    unfreeze: Annotated[
        bool, typer.Option("--unfreeze", help="Let the policy decide again.")
    ] = False,
    shares: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=SHARE", help="Fix the share of a domain; may be repeated."
        ),
    ] = None,
    add_domain: Annotated[
        str | None,
        typer.Option(
            "--add-domain",
            metavar="NAME=SHARE",
            help="Add a domain of the corpus --from, with this share.",
        ),
    ] = None,
    corpus: Annotated[
        Path | None,
        typer.Option("--from", metavar="CORPUS", help="The corpus of the domain to add."),
    ] = None,
    policy: Annotated[
        Path | None, typer.Option("--policy", help="Let the policy in this folder decide.")
    ] = None,
    store: StoreOption = None,
) -> None:
    """Change who decides the mixture of a run that is training, or add a domain to it.

    You decide, its policy, or another policy. It takes effect with the next interval, within the
    limits of the guard.

    Example: cuvee steer RUN --set code=0.3
    """
    from cuvee.core.errors import ConfigError
    from cuvee.recipes.stores import find_runs, open_store

    wanted: dict[str, Any] = {
        **({"freeze": True} if freeze else {}),
        **({"unfreeze": True} if unfreeze else {}),
        **({"set": dict(_share("--set", text) for text in shares)} if shares else {}),
        **(_policy(policy) if policy else {}),
        **(_domain(add_domain, corpus) if add_domain else {}),
    }
    if len(wanted.keys() - {"sha256"}) != 1:
        raise ConfigError(
            "give exactly one of --freeze, --unfreeze, --set, --policy and --add-domain"
        )
    if corpus and not add_domain:
        raise ConfigError(f"--from {corpus} needs --add-domain NAME=SHARE")
    with open_store(store, must_exist=True) as opened:
        found = find_runs(opened, [run])[0]
        request = opened.request(found.id, wanted, _author())
    say(
        f"request {request.number} to {found.id}: {request.text()}; it takes effect with the next "
        "interval. See `cuvee runs audit`"
    )


def _share(option: str, text: str) -> tuple[str, float]:
    from cuvee.core.errors import ConfigError

    name, _, share = text.rpartition("=")
    try:
        return name, float(share)
    except ValueError:
        raise ConfigError(f"{option} {text} is no NAME=SHARE, such as code=0.2") from None


def _domain(text: str, folder: Path | None) -> dict[str, Any]:
    """Open the corpus, so that a domain that it does not have is refused now."""
    from cuvee.core.errors import ConfigError
    from cuvee.data.corpus.corpus import Corpus

    name, share = _share("--add-domain", text)
    if folder is None:
        raise ConfigError(f"--add-domain {text} needs --from CORPUS, the folder of its corpus")
    corpus = Corpus.open(folder)
    corpus.pool(name)  # raises `CorpusError` for a domain that it does not have
    place = {"corpus": str(folder.absolute()), "fingerprint": corpus.fingerprint}
    return {"add": {"name": name, "share": share, **place, "vocabulary": corpus.vocabulary}}


def _policy(folder: Path) -> dict[str, str]:
    """Load the policy, so that one that cannot decide is refused now."""
    from cuvee.policies.files import load_policy, policy_sha256

    load_policy(folder)
    return {"policy": str(folder.absolute()), "sha256": policy_sha256(folder)}


def _author() -> str:
    import getpass
    import socket

    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"[:200]
