"""Registries find parts by name in cuvee, in installed packages and in plugins. Two parts never
share a name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cuvee.core.errors import ConfigError
from cuvee.core.registry import Registry, import_plugins


def registry() -> Registry:
    return Registry("widget", "cuvee_test.widgets", ())


def install(folder: Path, name: str, entry_points: str, source: str) -> None:
    """A package as pip leaves it: its module and its `dist-info`."""
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[cuvee_test.widgets]\n{entry_points}\n")
    (folder / f"{name}.py").write_text(source)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_registered_class_is_found_by_name_and_name_by_class() -> None:
    widgets = registry()

    @widgets.register("round")
    class Round:
        pass

    assert widgets.get("round") is Round
    assert widgets.name_of(Round) == "round"
    assert widgets.name_of(Registry) is None
    assert widgets.names() == ["round"]


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    widgets = registry()
    widgets.register("round")(Path)
    with pytest.raises(ConfigError, match=r"no widget 'ruond'; did you mean 'round'\?"):
        widgets.get("ruond")


def test_two_classes_cannot_have_one_name() -> None:
    widgets = registry()
    widgets.register("round")(Path)
    widgets.register("round")(Path)  # the same class again, as when a module is reloaded
    with pytest.raises(ConfigError, match=r"two widget classes are called 'round': .*Path and "):
        widgets.register("round")(Registry)
    assert widgets.get("round") is Path


def test_a_name_is_an_identifier() -> None:
    with pytest.raises(ConfigError, match=r"'os\.system' is no name for a widget"):
        registry().register("os.system")


def test_an_installed_entry_point_is_listed_unread_and_imported_when_asked_for(site: Path) -> None:
    install(site, "cuvee_widgets_a", "square = cuvee_widgets_a:Square", "class Square: pass\n")
    widgets = registry()
    assert widgets.names() == ["square"]
    assert "cuvee_widgets_a" not in sys.modules
    found = widgets.get("square")
    assert found.__name__ == "Square"
    assert widgets.name_of(found) == "square"


def test_a_broken_package_is_named(site: Path) -> None:
    install(site, "cuvee_widgets_b", "broken = cuvee_widgets_b:Gone", "")
    with pytest.raises(ConfigError, match=r"'broken' .* cuvee_widgets_b:Gone"):
        registry().get("broken")


def test_an_installed_package_cannot_replace_a_part(site: Path) -> None:
    install(site, "cuvee_widgets_c", "round = cuvee_widgets_c:Round", "class Round: pass\n")
    widgets = registry()
    widgets.register("round")(Path)
    with pytest.raises(ConfigError, match=r"'round': .*Path and cuvee_widgets_c:Round"):
        widgets.names()


def test_a_plugin_that_cannot_be_imported_is_named(site: Path) -> None:
    (site / "cuvee_bad_plugin.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError, match=r"'cuvee_bad_plugin'.*ZeroDivisionError"):
        import_plugins(["cuvee_bad_plugin"])
    with pytest.raises(ConfigError, match=r"'cuvee_no_such_plugin'.*PYTHONPATH"):
        import_plugins(["cuvee_no_such_plugin"])
    (site / "cuvee_script.py").write_text("import sys; sys.exit(3)\n")
    with pytest.raises(ConfigError, match=r"'cuvee_script'.*SystemExit: 3"):
        import_plugins(["cuvee_script"])
    for name in ("../cuvee_script", "cuvee_script.py:main", ".cuvee_script", ""):
        with pytest.raises(ConfigError, match="is not the name of a module"):
            import_plugins([name])


def test_the_registry_needs_neither_numpy_nor_torch() -> None:
    code = (
        "import sys, cuvee.core.registry; print('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"
