"""Registries: the parts that a configuration or a file can name.

    from cuvee.core.registry import register_policy

    @register_policy("staircase")
    class Staircase: ...

A registry finds a part in three places:

1. cuvee's own modules. They are imported when a name is first looked up, so a new part needs no
   entry in a list.
2. Installed packages with an entry point in the registry's group: `cuvee.methods`,
   `cuvee.policies`, …
3. The modules in a configuration's key `plugins: [module, …]`, which `import_plugins` imports.

Policy files, runs and tasks contain only the name of a part. A file therefore never decides what is
imported.
"""

from __future__ import annotations

import importlib
import pkgutil
import threading
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, TypeVar

from cuvee.core.errors import ConfigError, nearest

if TYPE_CHECKING:  # `core.protocols` imports numpy, which a list of names does not need
    from cuvee.core.protocols import Domains, Policy

Part = TypeVar("Part", bound=type[Any])


class Registry:
    """Maps names to classes.

    `kind` is the word for a part in messages. `homes` are cuvee's own packages that contain such
    parts.
    """

    def __init__(self, kind: str, group: str, homes: tuple[str, ...]) -> None:
        self.kind, self.group = kind, group
        self._homes = homes
        self._parts: dict[str, type[Any]] = {}
        self._plugins: dict[str, EntryPoint] = {}
        self._searched = False
        self._lock = threading.RLock()

    def register(self, name: str) -> Callable[[Part], Part]:
        """Return a class decorator that registers a class under `name`.

        Raises `ConfigError` if the name is not an identifier or belongs to another class.
        """
        if not name.isidentifier():
            raise ConfigError(
                f"{name!r} is no name for a {self.kind}: use letters, digits and underscores"
            )

        def add(part: Part) -> Part:
            known = self._parts.setdefault(name, part)
            if _place(known) != _place(part):
                self._refuse(name, _place(known), _place(part))
            self._parts[name] = part
            return part

        return add

    def get(self, name: str) -> type[Any]:
        """Return the class with this name.

        Raises `ConfigError`, with the nearest name, if there is none.
        """
        if name not in self._parts:
            self._search()
        if name in self._plugins and name not in self._parts:
            self._load(self._plugins[name])
        if name not in self._parts:
            raise ConfigError(
                f"no {self.kind} {name!r}{nearest(name, self.names())} "
                "(parts of your own are found if `plugins` lists their modules)"
            )
        return self._parts[name]

    def name_of(self, part: type[Any]) -> str | None:
        """Return the name under which a class is registered, or None."""
        if part not in self._parts.values():
            self._search()
            for plugin in self._plugins.values():
                self._load(plugin)
        return next((name for name, known in self._parts.items() if known is part), None)

    def names(self) -> list[str]:
        """Return all names, sorted. Entry points are listed without being imported."""
        self._search()
        return sorted({*self._parts, *self._plugins})

    def _search(self) -> None:
        """Import cuvee's own parts and list the installed ones, once."""
        with self._lock:
            if self._searched:
                return
            for home in self._homes:
                _import_all(home)
            for plugin in entry_points(group=self.group):
                known = self._plugins.setdefault(plugin.name, plugin).value
                if plugin.name in self._parts:
                    known = _place(self._parts[plugin.name])
                if known != plugin.value:
                    self._refuse(plugin.name, known, plugin.value)
            self._searched = True

    def _load(self, plugin: EntryPoint) -> None:
        try:
            part = plugin.load()
        except Exception as error:
            raise ConfigError(
                f"the {self.kind} {plugin.name!r} of the installed package cannot be imported "
                f"from {plugin.value} "
                f"({type(error).__name__}: {error}): repair or uninstall that package"
            ) from error
        self.register(plugin.name)(part)

    def _refuse(self, name: str, first: str, second: str) -> None:
        raise ConfigError(
            f"two {self.kind} classes are called {name!r}: {first} and {second}; rename one"
        )


def import_plugins(modules: Iterable[str]) -> None:
    """Import the modules of a configuration's `plugins`, which register their parts.

    Raises `ConfigError` if a name is not that of a module, or if an import fails.
    """
    for module in modules:
        if not all(part.isidentifier() for part in module.split(".")):
            raise ConfigError(
                f"plugins names {module!r}, which is not the name of a module: write it as in "
                "`import package.module`"
            )
        try:
            importlib.import_module(module)
        except ConfigError:
            raise
        except (Exception, SystemExit) as error:  # a script may call sys.exit
            raise ConfigError(
                f"plugins names {module!r}, which cannot be imported "
                f"({type(error).__name__}: {error}): "
                "install it, or put its folder on PYTHONPATH"
            ) from error


def _place(part: type[Any]) -> str:
    """Return `module:Class`, the notation of entry points."""
    return f"{part.__module__}:{part.__qualname__}"


def _import_all(package: str) -> None:
    home = importlib.import_module(package)
    for module in pkgutil.walk_packages(home.__path__, f"{package}."):
        importlib.import_module(module.name)


METHODS = Registry("method", "cuvee.methods", ("cuvee.methods",))
POLICIES = Registry("policy", "cuvee.policies", ("cuvee.policies", "cuvee.methods"))
AGENTS = Registry("agent", "cuvee.agents", ("cuvee.agents",))
ENCODERS = Registry("encoder", "cuvee.encoders", ("cuvee.policies",))
REWARDS = Registry("reward", "cuvee.rewards", ("cuvee.policies",))
TRAINERS = Registry("trainer", "cuvee.trainers", ("cuvee.training", "cuvee.simulation"))
PROBES = Registry("probe", "cuvee.probes", ("cuvee.probes",))

register_method = METHODS.register
"""Register a method, a dataclass with its options as fields; see `core.protocols.Method`."""
register_policy = POLICIES.register
"""Register a policy. Its constructor accepts what its `settings()` returns; see
`core.protocols.Policy`."""
register_agent = AGENTS.register
"""Register an agent; `agents.base.Agent` describes its constructor."""
register_encoder = ENCODERS.register
"""Register an encoder of observations; see `policies.encoders.Encoder`."""
register_reward = REWARDS.register
"""Register a reward function; see `policies.rewards.RewardFunction`."""
register_trainer = TRAINERS.register
"""Register a `core.protocols.Trainer` with two class methods.

`build(model, corpus, settings, ranks)` returns a trainer. `model` and `settings` are the sections
`model` and `train` of the configuration; `settings` includes the run's seed. `price(model, corpus,
settings)` returns the `Cost` of a whole run without seconds."""
register_probe = PROBES.register
"""Register a probe, a dataclass with its settings as fields; see `core.protocols.Probe`."""


def policy_without_proxies(name: str, corpus: Domains) -> Policy:
    """Return the policy of method `name`, with its default options, for a run over `corpus`.

    Raises `ConfigError` if the method is not known or learns from proxy runs first.
    """
    method = METHODS.get(name)()
    if method.propose(corpus, ()):
        raise ConfigError(
            f"{name} learns from proxy runs: run `cuvee search`, then give the policy, as in "
            "load_policy(folder)"
        )
    policy: Policy = method.commit(corpus, ())
    return policy
