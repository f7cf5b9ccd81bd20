"""Test 25: secrets in what commands print and write, and dangerous calls in the source."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import cuvee
from cuvee.core.trajectory import Trajectory
from cuvee.data.ingest.build import BuildSettings, build
from cuvee.fleet.journal import RunJournal
from cuvee.fleet.store.store import Store
from cuvee.policies.fixed import Fixed
from cuvee.policies.guard.guard import Guard
from cuvee.testing.postgres import find_binaries, postgres_server
from cuvee.testing.toy import ToyTrainer
from reliability.measure import Result, measured
from unit.test_dangerous_calls import dangerous

CANARIES = ("canary-password", "CANARY-pass", "CANARY-query", "CANARY-user")
CONFIG = """corpus: corpus
model: llama-0.1m
store: "{url}"
out: out
train: {{steps: 4, batch_size: 2, sequence_length: 32, interval: 2, validation_tokens: 64}}
"""


def commands(good: bool) -> list[list[str]]:
    """Every command, once as it succeeds and once as it fails, with its quietest and loudest form."""
    train = "train.yaml" if good else "missing.yaml"
    group = [] if good else ["--group", "no such"]
    run = "secret-" if good else "no-such-run"
    return [
        ["doctor", "--store", "@url" if good else "@missing"],
        ["corpus", "show", "corpus" if good else "nowhere"],
        ["corpus", "verify", "corpus" if good else "nowhere"],
        ["corpus", "build", "text" if good else "nowhere", "-o", "corpus-2", "--workers", "1"],
        ["init", "corpus" if good else "nowhere", "-o", "new.yaml"],
        ["questions", "corpus" if good else "nowhere", "-o", "questions"],
        ["validate", train],
        ["train", train, "method=odm", "name=secret"],
        ["train", train, "method=odm", "name=secret", "--quiet"],
        ["train", train, "method=odm", "--dry-run"],
        ["compare", train, "methods=[natural,odm]", "name=both", "--quiet"],
        ["search", "search.yaml" if good else "missing.yaml", "--workers", "2"],
        ["learn", "search.yaml" if good else "missing.yaml", "-o", "learned"],
        ["recommend", "table.csv" if good else "missing.csv"],
        ["order-test", train, "--between", "web,code", "--seeds", "2"],
        ["steer", "interrupted" if good else "no-such-run", "--freeze"],
        ["runs", "rm", "interrupted" if good else "no-such-run", "--yes"],
        ["runs", "list", *group],
        ["runs", "show", run],
        ["runs", "audit", run],
        ["runs", "watch", *group],
        ["runs", "export", "-o", "runs.json" if good else "/proc/runs.json"],
        ["evaluate", run, "--questions", "questions.jsonl"],
        ["report", "-o", "page.html" if good else "/proc/page.html"],
        ["demo", "--help"] if good else ["demo", "--no-such-option"],
    ]


def leaks(text: bytes) -> int:
    return sum(text.count(canary.encode()) for canary in CANARIES)


@contextlib.contextmanager
def command_lines() -> Iterator[list[int]]:
    """Counts secrets in the command lines of all processes while the block runs."""
    found = [0]
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            for place in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    found[0] += leaks(place.read_bytes())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def invoke(arguments: Sequence[str], output: io.BytesIO) -> int:
    """Run a command in this process; what it and its children print goes to `output`."""
    from cuvee.cli import main

    with tempfile.TemporaryFile() as file, mock.patch.object(sys, "argv", ["cuvee", *arguments]):
        sys.stdout.flush()
        kept = os.dup(1), os.dup(2)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException:
            traceback.print_exc()  # as Python would
            code = 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(kept[0], 1)
            os.dup2(kept[1], 2)
            os.close(kept[0])
            os.close(kept[1])
        file.seek(0)
        output.write(file.read())
    return code


def prepare(folder: Path, url: str) -> None:
    (folder / "text").mkdir()
    for name in ("web", "code"):
        texts = (
            f"Words of {name} {i}. Others follow them. So it ends, {i}. " * 3 for i in range(90)
        )
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / "text" / f"{name}.jsonl").write_text(rows)
    (folder / "train.yaml").write_text(CONFIG.format(url=url))
    search = CONFIG.format(url=url) + "method: {name: regmix, proxies: 8, fit: log_linear}\n"
    (folder / "search.yaml").write_text(search)
    (folder / "url").write_text(url)
    lines = "".join(f"r{i},{i / 20},{1 - i / 20},{3 - i / 10}\n" for i in range(20))
    (folder / "table.csv").write_text("run,train_a,train_b,metric/a_loss\n" + lines)
    (folder / "questions.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    build([folder / "text"], folder / "corpus", BuildSettings(vocab_size=300), workers=1)


def interrupted_run(url: str) -> None:
    """Store a run that has stopped after one interval, which can be steered."""
    with Store.open(url) as store:
        store.create("interrupted", 0, {}, run_id="interrupted")
        claim = store.claim_run("interrupted", "worker")
        trainer = ToyTrainer()
        policy = Guard(Fixed({"web": 0.4, "code": 0.3, "maths": 0.3}))
        so_far = Trajectory.start(trainer.start(()))
        journal = RunJournal(store, claim)
        journal.record(so_far, trainer, policy, {})
        mixture = policy.mixture(so_far)
        so_far = so_far.append(mixture, trainer.advance(mixture))
        journal.record(so_far, trainer, policy, policy.learn(so_far))
        claim.release()


def session(url: str, dead: str) -> dict[str, Any]:
    """All commands with a live store, then all with wrong arguments and an unreachable store."""
    found: dict[str, Any] = {"commands": 0, "failed": [], "printed": 0, "written": 0}
    output = io.BytesIO()
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as name, command_lines() as seen:
        folder = Path(name)
        prepare(folder, url)
        interrupted_run(url)
        given = {path: leaks(path.read_bytes()) for path in folder.rglob("*") if path.is_file()}
        os.chdir(folder)
        try:
            for good in (True, False):
                for address in (url,) if good else (url, dead):
                    with mock.patch.dict(os.environ, CUVEE_STORE=address):
                        for arguments in commands(good):
                            code = invoke(arguments, output)
                            found["commands"] += 1
                            if good and code:
                                found["failed"].append(" ".join(arguments))
        finally:
            os.chdir(home)
        found["printed"] = leaks(output.getvalue())
        found["written"] = sum(
            leaks(path.read_bytes()) - given.get(path, 0)
            for path in folder.rglob("*")
            if path.is_file()
        )
        time.sleep(0.1)
        found["in command lines"] = seen[0]
    found["said"] = output.getvalue().decode(errors="replace")
    return found


def unsafe_calls() -> list[str]:
    """Dangerous calls in the source, and SQL made with f-strings."""
    found = []
    for path in sorted(Path(cuvee.__file__).parent.rglob("*.py")):
        tree = ast.parse(path.read_text())
        found += [f"{path}: {call}" for call in (*dangerous(tree), *formatted_sql(tree))]
    return found


def formatted_sql(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            is_sql = node.func.attr in ("text", "exec_driver_sql", "execute", "executescript")
            if is_sql and any(isinstance(argument, ast.JoinedStr) for argument in node.args):
                yield f"line {node.lineno}: SQL from an f-string"


def shows_all() -> Any:
    """A careless `Address`: what is shown is the whole URL."""
    from cuvee.fleet.store import address

    real = address._postgresql

    def careless(url: Any) -> Any:
        found = real(url)
        return address.Address(found.url, url.render_as_string(hide_password=False), found.secrets)

    return mock.patch.object(address, "_postgresql", careless)


def with_secrets(url: str, reachable: bool) -> str:
    """The URL of a store with a user, a password and a query that nothing may show."""
    from sqlalchemy.engine import make_url

    place = make_url(url).update_query_dict({"application_name": CANARIES[2]})
    if not reachable:
        place = place.set(port=1, username=CANARIES[3], password=CANARIES[1])
    return place.render_as_string(hide_password=False)


@measured(25, "secrets and dangerous calls")
def secrets(full: bool) -> Result:
    assert find_binaries(), "PostgreSQL is not installed"
    with postgres_server() as server:
        url, dead = (with_secrets(server.url, reachable) for reachable in (True, False))
        found = session(url, dead)
    print("\n".join(found["failed"]), file=sys.stderr)
    shown = io.BytesIO()
    with shows_all(), mock.patch.dict(os.environ, CUVEE_STORE=dead):
        invoke(["runs", "list"], shown)
    calls = unsafe_calls()
    planted = list(dangerous(ast.parse("yaml.load(x)\ntorch.load(x)\neval(x)")))
    planted += formatted_sql(ast.parse("connection.execute(f'select {x}')"))
    return Result(
        f"{found['commands']} commands, {len(found['failed'])} of them failed unasked",
        f"{found['printed']} printed, {found['written']} written, {found['in command lines']} in "
        f"command lines, {len(calls)} dangerous calls",
        "0, 0, 0, 0",
        not any((found["printed"], found["written"], found["in command lines"], calls)),
        {"the whole URL is shown": leaks(shown.getvalue()) > 0, "four calls": len(planted) == 4},
    )
