"""A policy that only a plugin registers, for tests of worker processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cuvee.core.protocols import Policy
from cuvee.core.registry import POLICIES, import_plugins

MODULE = "cuvee_fleet_plugin"
_SOURCE = """
from cuvee.core.registry import register_policy
from cuvee.policies.fixed import Fixed


@register_policy("of_a_plugin")
class OfAPlugin(Fixed): ...
"""


def plugin_policy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Policy:
    """Write the plugin, put it on the path of this and later processes, and return its policy."""
    (folder / f"{MODULE}.py").write_text(_SOURCE)
    monkeypatch.syspath_prepend(str(folder))
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))
    import_plugins([MODULE])
    policy: Policy = POLICIES.get("of_a_plugin")({"web": 0.5, "code": 0.5})
    return policy
