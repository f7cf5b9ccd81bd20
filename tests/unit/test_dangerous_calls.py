"""The source calls nothing that could run code from a file or a shell."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "cuvee"
FORBIDDEN = {
    "eval", "exec", "compile", "os.system", "os.popen", "tempfile.mktemp", "marshal.loads",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cPickle.loads", "dill.loads", "joblib.load",
    "shelve.open", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load",
    "runpy.run_path", "pandas.read_pickle",
}  # fmt: skip
UNSAFE_OPTIONS = {
    "shell": True, "allow_pickle": True, "trust_remote_code": True, "weights_only": False
}  # fmt: skip

UNSAFE_LOADERS = {"yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader", "yaml.CLoader"}


def name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def dangerous(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = name_of(node.func)
        options = {
            word.arg: word.value.value
            for word in node.keywords
            if isinstance(word.value, ast.Constant)
        }
        if name in FORBIDDEN:
            yield f"line {node.lineno}: {name}"
        if name == "torch.load" and options.get("weights_only") is not True:
            yield f"line {node.lineno}: torch.load without weights_only=True"
        loaders = [name_of(word.value) for word in node.keywords if word.arg == "Loader"]
        if name == "yaml.load" and (not loaders or loaders[0] in UNSAFE_LOADERS):
            yield f"line {node.lineno}: yaml.load with {loaders or 'no loader'}"
        for option, unsafe in UNSAFE_OPTIONS.items():
            if options.get(option) is unsafe:
                yield f"line {node.lineno}: {name}({option}={unsafe})"


def test_the_source_makes_no_dangerous_call() -> None:
    found = {
        str(path.relative_to(SOURCE)): calls
        for path in SOURCE.rglob("*.py")
        if (calls := list(dangerous(ast.parse(path.read_text()))))
    }
    assert found == {}


@pytest.mark.parametrize(
    "line",
    [
        "pickle.loads(b'')", "eval('1')", "torch.load('x')", "torch.load('x', weights_only=False)",
        "subprocess.run('ls', shell=True)", "np.load('x', allow_pickle=True)", "yaml.load('a: 1')", "yaml.load('a: 1', Loader=yaml.Loader)",
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
    ],
)  # fmt: skip
def test_a_planted_call_is_found(line: str) -> None:
    assert list(dangerous(ast.parse(line)))
