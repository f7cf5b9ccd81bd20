"""What a configuration may say: `TrainConfig` and `CompareConfig`, and how YAML and `key=value` become one of them.

The sections that belong to one part of cuvee are that part's own settings (`Limits`, `TrainerSettings`, a method's fields), so an
option is declared once. Every complaint names the key, the value and the remedy.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from cuvee.core.errors import ConfigError, CuveeError, PolicyError, nearest
from cuvee.core.files import sha256_of
from cuvee.core.mixture import NAME_PATTERN
from cuvee.core.protocols import Method, Policy
from cuvee.core.registry import METHODS, TRAINERS, import_plugins
from cuvee.core.trajectory import Cost
from cuvee.data.corpus.base_folder import find_base
from cuvee.policies.files import UNIVERSAL, kind_of_policy, load_policy, read_provenance
from cuvee.policies.guard.guard import Limits
from cuvee.recipes.config.explain import explain
from cuvee.recipes.config.questions import Evaluation
from cuvee.recipes.config.yaml_file import override, read_yaml
from cuvee.training.settings import TrainerSettings

_STRICT = ConfigDict(extra="forbid", frozen=True)
Name = Annotated[str, Field(pattern=f"^{NAME_PATTERN.pattern}$")]
Module = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.]*$")]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
_WHERE_NOT_WHAT = {"train": {"device", "compile", "seed"}}
Anything = TypeVar("Anything", bound="RunConfig")


class MethodChoice(BaseModel):
    """`odm`, or `{name: odm, smoothing: 0.8, label: odm-fast}`: a registered method with its options.

    `label` is what the method is called in a comparison; it defaults to the name.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str
    label: Name = ""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        value = {"name": value} if isinstance(value, str) else value
        return (
            {"label": value["name"], **value}
            if isinstance(value, dict) and "name" in value
            else value
        )

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.build()
        return self

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    def build(self, seed: int = 0) -> Method:
        """The method itself; one that draws random numbers draws them by `seed` unless its options say otherwise.

        Raises `ConfigError` if there is no method of that name, or if it has no such option.
        """
        kind = METHODS.get(self.name)
        if not dataclasses.is_dataclass(kind):
            raise ConfigError(
                f"the method {self.name!r} is no dataclass: add @dataclass(frozen=True)"
            )
        seeded = (
            {"seed": seed}
            if any(field.name == "seed" for field in dataclasses.fields(kind))
            else {}
        )
        fields: dict[str, Any] = {self.name: (kind, ...)}
        holder = create_model("Options", __config__=_STRICT, **fields)
        content = {self.name: {**seeded, **self.options}}
        try:
            method: Method = getattr(holder.model_validate(content), self.name)
        except ValidationError as error:
            raise ConfigError(explain(error, holder, content)) from None
        return method


class PolicyChoice(BaseModel):
    """`{policy: runs/search/policy, label: ac_odm_proxy}`, or the folder alone: a saved policy, that steers instead of a method.

    `universal` is the one that ships with the package; a folder of that name is `./universal`. `label` defaults to what the
    folder, or the one around a folder called `policy`, is called.
    """

    model_config = _STRICT
    policy: Path
    label: Name = ""

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        value = {"policy": value} if isinstance(value, (str, Path)) else value
        if not isinstance(value, dict) or not isinstance(value.get("policy"), (str, Path)):
            return value
        if "name" in value:
            raise ConfigError(
                f"both a method ({value['name']}) and a policy ({value['policy']}) are given; keep one"
            )
        if value["policy"] == UNIVERSAL.name:
            value = {**value, "policy": UNIVERSAL}
        folder = Path(value["policy"]).absolute()
        return {
            "label": _as_name(folder.parent.name if folder.name == "policy" else folder.name),
            **value,
        }

    def load(self) -> Policy:
        return load_policy(self.policy)

    @property
    def is_shipped(self) -> bool:
        return self.policy == UNIVERSAL

    @property
    def reads_feedback(self) -> bool:
        """Whether it can be told of questions. Raises `PolicyError` if no policy is there."""
        return hasattr(kind_of_policy(self.policy), "evaluating")

    @property
    def sha256(self) -> str:
        """Of all that is in the folder. Raises `PolicyError` if no policy is there."""
        hashes = self.policy / "hashes.json"
        if not hashes.is_file():
            raise PolicyError(
                f"{self.policy} holds no policy: give the `policy` folder of a run or a search"
            )
        return sha256_of(hashes)

    @property
    def proxies(self) -> Cost | None:
        """What the runs have cost that it was learned from; None if its file does not say."""
        proxies = read_provenance(self.policy).get("proxies")
        try:
            return (
                None
                if proxies is None
                else Cost(*(proxies[name] for name in ("tokens", "flops", "seconds")))
            )
        except (KeyError, TypeError) as error:
            raise PolicyError(
                f"{self.policy} says of its cost {proxies!r}, which is none: save it again"
            ) from error


def _kind_of(choice: Any) -> str:
    """The words are none that a choice may have as a key, so that `explain` takes them for what they are."""
    saved = isinstance(choice, PolicyChoice) or (isinstance(choice, dict) and "policy" in choice)
    return "a policy" if saved else "a method"


Choice = Annotated[
    Annotated[MethodChoice, Tag("a method")] | Annotated[PolicyChoice, Tag("a policy")],
    Discriminator(_kind_of),
]
"""What a comparison compares: `odm`, `{name: odm, …}` or `{policy: FOLDER}`."""


class RunConfig(BaseModel):
    """What training and comparing have in common. Paths are relative to the working directory."""

    model_config = _STRICT
    plugins: tuple[Module, ...] = ()
    """Modules that register parts of your own. They are imported here and in every worker process."""
    corpus: Path
    """A folder that `cuvee corpus build` wrote."""
    model: str | dict[str, Any] = "llama-0.1m"
    """A preset, a Hugging Face folder, or the fields of a Hugging Face configuration with `model_type`."""
    trainer: str = "lm"
    """What trains it: lm, simulator (random scaling laws, no model), or a registered trainer of your own."""
    train: TrainerSettings = TrainerSettings()
    guard: Limits = Limits()
    name: Name = "run"
    store: str | None = None
    """A file for SQLite, a URL, or @FILE that holds one; if not given $CUVEE_STORE, else runs/cuvee.db."""
    out: Path = Path("runs")
    """Where each run keeps its folder of checkpoints, model and policy."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 10
    """Intervals between checkpoints."""
    threads: Annotated[int, Field(ge=1)] = 1
    """CPU threads of each run."""

    @model_validator(mode="before")
    @classmethod
    def _plug_in(cls, content: Any) -> Any:
        """Before anything else is checked, so that the other keys may name what the plugins register."""
        plugins = content.get("plugins") if isinstance(content, dict) else None
        if isinstance(plugins, (list, tuple)):
            import_plugins(name for name in plugins if isinstance(name, str))
        return content

    def setting(self, corpus_fingerprint: str) -> dict[str, Any]:
        """What runs that may be compared have in common, as plain JSON: it decides what they compute."""
        same = self.model_dump(
            mode="json", include={"model", "trainer", "guard", "train"}, exclude=_WHERE_NOT_WHAT
        )
        return {"corpus": corpus_fingerprint, **same, **self._base()}

    def _base(self) -> dict[str, str]:
        """If the model is a folder to continue from, what it is called and what is in it: its place decides nothing."""
        folder = self.base_folder
        if folder is None:
            return {}
        called = folder.parent.name if folder.name == "model" else folder.name
        return {"model": _as_name(called), "model_sha256": sha256_of_model(folder)}

    @property
    def base_folder(self) -> Path | None:
        """The Hugging Face folder that training continues from, if it does."""
        if not isinstance(self.model, str) or not Path(self.model).is_dir():
            return None
        from cuvee.training.model import PRESETS  # which loads torch, and a folder is rare

        return None if self.model in PRESETS else Path(self.model).absolute()

    @field_validator("trainer")
    @classmethod
    def _known_trainer(cls, name: str) -> str:
        TRAINERS.get(name)
        return name

    @field_validator("train", mode="before")
    @classmethod
    def _one_seed(cls, train: Any) -> Any:
        if isinstance(train, dict) and "seed" in train:
            raise ConfigError(
                "unknown key 'seed' in train; the seed of a run is `seed`, beside `train`"
            )
        return train


class TrainConfig(RunConfig):
    """One run: one method, one seed."""

    method: MethodChoice = MethodChoice(name="natural")
    policy: PolicyChoice | None = None
    """A policy folder that steers instead of a method."""
    evaluation: Evaluation | None = None
    """Questions for a policy that reads feedback; without them it steers without."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _one_steers(self) -> Self:
        if self.policy is None and self.evaluation is not None:
            raise ConfigError(
                f"evaluation is given, and {self.method.label} does not ask for it: it is for a saved policy (policy: FOLDER)"
            )
        if self.policy is not None and "method" in self.model_fields_set:
            raise ConfigError(
                f"both method ({self.method.label}) and policy ({self.policy.policy}) are given; keep one"
            )
        return self

    @property
    def label(self) -> str:
        """What steers, in a word."""
        return (self.policy or self.method).label

    def identity(self, corpus_fingerprint: str) -> dict[str, Any]:
        """Everything that decides what the run computes, and nothing that does not; plain JSON.

        Raises `PolicyError` if the policy that is to steer is not there.
        """
        own = {**self.setting(corpus_fingerprint), "seed": self.seed}
        if self.policy is None:
            return {**own, "method": self.method.model_dump(mode="json")}
        asked = {} if self.evaluation is None else {"evaluation": self.evaluation.identity()}
        return {**own, "policy": self.policy.label, "policy_sha256": self.policy.sha256, **asked}

    def run_id(self, corpus_fingerprint: str) -> str:
        """The same for the same configuration on the same corpus, and for no other: `train-odm-s0-3f2a9c41`."""
        return f"{f'{self.name}-{self.label}-s{self.seed}'[:55]}-{short_digest(self.identity(corpus_fingerprint))}"


class CompareConfig(RunConfig):
    """Methods × seeds. For one seed all methods share model weights, the order of each domain's data, and evaluation."""

    methods: Annotated[tuple[Choice, ...], Field(min_length=1)]
    """Saved policies may stand among them."""
    evaluation: Evaluation | None = None
    """Questions for those of them that read feedback."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    baseline: str = ""
    """The label of the method that the others are measured against; the first one if not given."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        labels = [method.label for method in self.methods]
        for label in labels:
            if labels.count(label) > 1:
                raise ConfigError(
                    f"two methods are called {label!r}; tell them apart with `label: …`"
                )
        if len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds are {list(self.seeds)}: each may be given once")
        if self.baseline and self.baseline not in labels:
            near = nearest(self.baseline, labels)
            raise ConfigError(f"baseline is {self.baseline!r}, which is not compared{near}")
        return self

    @property
    def baseline_label(self) -> str:
        return self.baseline or self.methods[0].label

    def group(self, corpus_fingerprint: str) -> str:
        """The same for comparisons that differ in methods and seeds only, so that either can be added later."""
        return f"{self.name[:55]}-{short_digest(self.setting(corpus_fingerprint))}"

    def runs(self) -> list[TrainConfig]:
        """One configuration for each method and seed, seed by seed, so that early results are already paired."""
        common = {name: getattr(self, name) for name in RunConfig.model_fields}
        choices = [self._steering(choice) for choice in self.methods]
        if self.evaluation is not None and not any("evaluation" in choice for choice in choices):
            raise ConfigError(
                f"evaluation is given, and none of {', '.join(choice.label for choice in self.methods)} reads feedback"
            )
        return [
            TrainConfig(**common, **choice, seed=seed) for seed in self.seeds for choice in choices
        ]

    def _steering(self, choice: MethodChoice | PolicyChoice) -> dict[str, Any]:
        if isinstance(choice, MethodChoice):
            return {"method": choice}
        asked = self.evaluation is not None and choice.reads_feedback
        return {"policy": choice, **({"evaluation": self.evaluation} if asked else {})}


def sha256_of_model(folder: Path) -> str:
    """Over configuration and weights of a Hugging Face folder: every file that decides what the model computes.

    Raises `ConfigError` if the folder names files that cuvee does not read.
    """
    return hashlib.sha256("".join(map(_file_digest, find_base(folder).files)).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    about = path.stat()
    return f"{path.name} {_sha256_of(path, about.st_size, about.st_mtime_ns)}\n"


@functools.lru_cache(maxsize=64)
def _sha256_of(path: Path, size: int, changed: int) -> str:
    """Weights are large and a run's identity is asked for often; `size` and `changed` tell a file that was replaced."""
    return sha256_of(path)


def _as_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)[:64] or "unnamed"


def short_digest(document: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits of a sha256 over plain JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:8]


def load(kind: type[Anything], path: Path, overrides: Sequence[str] = ()) -> Anything:
    """The configuration in `path` with `key=value` overrides; its name is the file's unless it says otherwise.

    Raises `ConfigError` for what cannot be read, unknown keys (naming the nearest right one) and values out of range.
    """
    content = read_yaml(path)
    override(content, overrides)
    if "name" not in content:
        content["name"] = _as_name(path.stem)
    return parse(kind, content, str(path))


def parse(kind: type[Anything], content: Mapping[str, Any], source: str) -> Anything:
    """`content` as a configuration; `source` says in messages where it came from."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{source}: {explain(error, kind, content)}") from None
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    except CuveeError as error:  # a range that a settings class checks itself
        raise ConfigError(f"{source}: {error}") from error
