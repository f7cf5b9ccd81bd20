"""Configurations of jobs: `TrainConfig` and `CompareConfig`, read from YAML and `key=value`.

Each section that belongs to a part of cuvee is that part's own settings class (`Limits`,
`TrainerSettings`, the fields of a method), so every option is declared once. Every error names the
key, the value and the remedy.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationError,
    create_model,
    field_serializer,
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
from cuvee.evaluation.claims import parse_claim
from cuvee.policies.files import (
    UNIVERSAL,
    kind_of_policy,
    load_policy,
    no_policy,
    read_provenance,
)
from cuvee.policies.guard.guard import Limits
from cuvee.recipes.config.explain import by_name, explain
from cuvee.recipes.config.questions import Evaluation
from cuvee.recipes.config.yaml_file import override, read_yaml
from cuvee.training.settings import TrainerSettings

# A name such as 2019 reads as a number, whose `str` is the text in the file.
_STRICT = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)
Name = Annotated[str, Field(pattern=f"^{NAME_PATTERN.pattern}$")]
Module = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.]*$")]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Part = Literal["weights", "order", "agent"]
"""What a seed decides: the initial weights, the order of the data, the method's random draws."""
PARTS: tuple[Part, ...] = get_args(Part)


def _known_trackers(names: tuple[str, ...]) -> tuple[str, ...]:
    if names:
        from cuvee.integrations.trackers import check_trackers  # loads torch

        check_trackers(names)
    return names


Trackers = Annotated[tuple[str, ...], AfterValidator(_known_trackers)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_WHERE_NOT_WHAT = {
    "train": {"device", "compile"},
    "guard": {"decision_seconds"},
}
_SEEDS_OF_RUN = {
    "seed": "the seed of a run is `seed`",
    "order_seed": "that is `part_seeds.order`",
}
"""Keys of `train` that a configuration gives beside it."""
Anything = TypeVar("Anything", bound="RunConfig")


class MethodChoice(BaseModel):
    """A registered method with its options.

    Examples: `odm`, or `{name: odm, smoothing: 0.8, label: odm-fast}`. `label` names the method in
    a comparison. The default is the method's name.
    """

    model_config = ConfigDict(extra="allow", frozen=True, coerce_numbers_to_str=True)
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

    def build(self, seed: int = 0, objective: Mapping[str, float] | None = None) -> Method:
        """Return the method, with the run's `seed` and `objective` unless its options name others.

        Raises `ConfigError` if there is no method of that name, or if it has no such option.
        """
        kind = METHODS.get(self.name)
        if not dataclasses.is_dataclass(kind):
            raise ConfigError(
                f"the method {self.name!r} is not a dataclass: add @dataclass(frozen=True)"
            )
        known = {field.name for field in dataclasses.fields(kind)}
        of_run: dict[str, Any] = {"seed": seed} if "seed" in known else {}
        if objective and "objective" in known:
            of_run["objective"] = dict(objective)
        fields: dict[str, Any] = {self.name: (kind, ...)}
        holder = create_model("Options", __config__=_STRICT, **fields)
        content = {self.name: {**of_run, **self.options}}
        try:
            method: Method = getattr(holder.model_validate(content), self.name)
        except ValidationError as error:
            raise ConfigError(explain(error, holder, content)) from None
        return method


class PolicyChoice(BaseModel):
    """A saved policy, used instead of a method: its folder, or `{policy: FOLDER, label: NAME}`.

    `universal` is the policy that ships with the package; write `./universal` for a folder of that
    name. `label` defaults to the folder's name, or to its parent's name if it is called `policy`.
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
                f"both a method ({value['name']}) and a policy ({value['policy']}) are given; "
                "keep one"
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
        """Whether it can use questions. Raises `PolicyError` if the folder has no policy."""
        return hasattr(kind_of_policy(self.policy), "with_evaluation")

    @property
    def sha256(self) -> str:
        """Digest of all files in the folder. Raises `PolicyError` if the folder has no policy."""
        hashes = self.policy / "hashes.json"
        if not hashes.is_file():
            raise no_policy(self.policy)
        return sha256_of(hashes)

    @property
    def proxies(self) -> Cost | None:
        """The cost of the runs from which it was learned; None if its file does not have it."""
        proxies = read_provenance(self.policy).get("proxies")
        try:
            return (
                None
                if proxies is None
                else Cost(*(proxies[name] for name in ("tokens", "flops", "seconds")))
            )
        except (KeyError, TypeError) as error:
            raise PolicyError(
                f"{self.policy} has the cost {proxies!r}, which is not valid: save it again"
            ) from error


def _kind_of(choice: Any) -> str:
    """The tag of a choice. Tags are not valid keys, so `explain` can tell them from keys."""
    saved = isinstance(choice, PolicyChoice) or (isinstance(choice, dict) and "policy" in choice)
    return "a policy" if saved else "a method"


Choice = Annotated[
    Annotated[MethodChoice, Tag("a method")] | Annotated[PolicyChoice, Tag("a policy")],
    Discriminator(_kind_of),
]
"""An entry of a comparison: `odm`, `{name: odm, …}` or `{policy: FOLDER}`."""


class RunConfig(BaseModel):
    """The keys that all jobs share. Paths are relative to the working directory."""

    model_config = _STRICT
    plugins: tuple[Module, ...] = ()
    """Modules that register parts of your own. Every worker process imports them too."""
    corpus: Path
    """A folder that `cuvee corpus build` wrote."""
    model: str | dict[str, Any] = "llama-0.1m"
    """A preset, a Hugging Face folder, or the fields of a configuration with `model_type`."""
    trainer: str = "lm"
    """`lm` (a real model), `simulator` (random scaling laws) or a registered trainer."""
    train: TrainerSettings = TrainerSettings()
    guard: Limits = Limits()
    objective: Annotated[dict[str, NonNegative], Field(min_length=1)] | None = None
    """What methods optimise and reports judge by: weights of validated domains.

    By default methods count all of them alike.
    """
    name: Name = "run"
    store: str | None = None
    """An SQLite file, a URL, or @FILE with a URL. Default: $CUVEE_STORE, else runs/cuvee.db."""
    out: Path = Path("runs")
    """The folder in which each run has a folder for checkpoints, model and policy."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 10
    """Intervals between checkpoints."""
    threads: Annotated[int, Field(ge=1)] = 1
    """CPU threads of each run."""

    @model_validator(mode="before")
    @classmethod
    def _plug_in(cls, content: Any) -> Any:
        """Import plugins before other checks, so that other keys can name what they register."""
        plugins = content.get("plugins") if isinstance(content, dict) else None
        if isinstance(plugins, (list, tuple)):
            import_plugins(name for name in plugins if isinstance(name, str))
        return content

    def setting(self, corpus_fingerprint: str) -> dict[str, Any]:
        """The part of the identity that comparable runs share, as plain JSON."""
        same = self.model_dump(
            mode="json", include={"model", "trainer", "guard", "train"}, exclude=_WHERE_NOT_WHAT
        )
        aim = {"objective": dict(self.objective)} if self.objective else {}
        return {"corpus": corpus_fingerprint, **same, **aim, **self._base()}

    def _base(self) -> dict[str, str]:
        """Name and content hash of the folder to continue from, if any. Its path does not count."""
        folder = self.base_folder
        if folder is None:
            return {}
        called = folder.parent.name if folder.name == "model" else folder.name
        return {"model": _as_name(called), "model_sha256": sha256_of_model(folder)}

    @property
    def base_folder(self) -> Path | None:
        """The Hugging Face folder from which training continues, or None for a new model."""
        if not isinstance(self.model, str) or not Path(self.model).is_dir():
            return None
        from cuvee.training.model import PRESETS  # loads torch, so only when it is needed

        return None if self.model in PRESETS else Path(self.model).absolute()

    @field_validator("trainer")
    @classmethod
    def _known_trainer(cls, name: str) -> str:
        TRAINERS.get(name)
        return name

    @field_serializer("train", mode="wrap")
    def _without_seeds(
        self, train: TrainerSettings, dump: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        return {key: value for key, value in dump(train).items() if key not in _SEEDS_OF_RUN}

    @field_validator("train", mode="before")
    @classmethod
    def _one_seed(cls, train: Any) -> Any:
        for key, right in _SEEDS_OF_RUN.items():
            if isinstance(train, dict) and key in train:
                raise ConfigError(f"unknown key {key!r} in train; {right}, beside `train`")
        return train


class TrainConfig(RunConfig):
    """The configuration of one run: one method or saved policy, one seed."""

    # Not validated here: that would import all methods, and torch, wherever a configuration is named.
    method: MethodChoice = MethodChoice.model_construct(name="natural", label="natural")
    policy: PolicyChoice | None = None
    """A saved policy's folder, used instead of a method."""
    evaluation: Evaluation | None = None
    """Questions for a policy that reads feedback. It also works without them."""
    trackers: Trackers = ()
    """Experiment trackers, by name. They change nothing that is computed."""
    seed: Seed = 0
    part_seeds: dict[Part, Seed] = Field(default_factory=dict)
    """Seeds of parts of the run, where they differ from `seed`."""

    @model_validator(mode="after")
    def _one_steers(self) -> Self:
        if self.policy is None and self.evaluation is not None:
            raise ConfigError(
                f"evaluation is given, but {self.method.label} does not use it: it is for a saved "
                "policy (policy: FOLDER)"
            )
        if self.policy is not None and "method" in self.model_fields_set:
            raise ConfigError(
                f"both method ({self.method.label}) and policy ({self.policy.policy}) are given; "
                "keep one"
            )
        return self

    @property
    def label(self) -> str:
        """The label of the policy or method."""
        return (self.policy or self.method).label

    def seed_of(self, part: Part) -> int:
        """The seed of a part of the run."""
        return self.part_seeds.get(part, self.seed)

    def identity(self, corpus_fingerprint: str) -> dict[str, Any]:
        """Everything that decides what the run computes, and nothing else, as plain JSON.

        Raises `PolicyError` if the folder of `policy` has no policy.
        """
        own: dict[str, Any] = {**self.setting(corpus_fingerprint), "seed": self.seed}
        if self.part_seeds:
            own["part_seeds"] = dict(self.part_seeds)
        if self.policy is None:
            return {**own, "method": self.method.model_dump(mode="json")}
        asked = {} if self.evaluation is None else {"evaluation": self.evaluation.identity()}
        return {**own, "policy": self.policy.label, "policy_sha256": self.policy.sha256, **asked}

    def run_id(self, corpus_fingerprint: str) -> str:
        """The id of the run, such as `train-odm-s0-3f2a9c41`. Equal only for equal identities."""
        readable = f"{self.name}-{self.label}-s{self.seed}"[:55]
        return f"{readable}-{short_digest(self.identity(corpus_fingerprint))}"


class CompareConfig(RunConfig):
    """The configuration of a comparison: methods × seeds.

    For one seed, all methods share initial weights, the order of each domain's data, and the
    evaluation.
    """

    methods: Annotated[tuple[Choice, ...], Field(min_length=1)]
    """Methods and saved policies to compare."""
    evaluation: Evaluation | None = None
    """Questions for the policies among them that read feedback."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    crossed: tuple[Part, ...] = ()
    """Parts of a run that get every combination of `seeds`; other parts keep the first seed.

    Without it, one seed decides all parts of a run.
    """
    baseline: str = ""
    """The label that the others are compared with; by default the first method."""
    models: Annotated[tuple[str | dict[str, Any], ...], Field(min_length=1)] | None = None
    """Several models instead of `model`. Each is a comparison of its own, with its own report."""
    trackers: Trackers = ()
    """Experiment trackers of each run, by name. They change nothing that is computed."""
    claims: tuple[str, ...] = ()
    """Claims such as `ac_odm < even`, registered before the runs and answered after them."""

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
        if len(set(self.crossed)) != len(self.crossed):
            raise ConfigError(f"crossed is {list(self.crossed)}: each part may be given once")
        if self.crossed and len(self.seeds) < 2:
            raise ConfigError(
                f"crossed is given, but there is one seed, {self.seeds[0]}: give two or more"
            )
        if self.baseline and self.baseline not in labels:
            near = nearest(self.baseline, labels)
            raise ConfigError(f"baseline is {self.baseline!r}, which is not in methods{near}")
        for claim in self.claims:
            parse_claim(claim, labels)
        if self.models and "model" in self.model_fields_set:
            raise ConfigError("both model and models are given; keep one")
        return self

    def with_claims(self, claims: Sequence[str]) -> CompareConfig:
        """Return this comparison with more claims. Raises `ConfigError` as the key `claims` does."""
        labels = [method.label for method in self.methods]
        for claim in claims:
            parse_claim(claim, labels)
        return self.model_copy(update={"claims": (*self.claims, *claims)})

    def by_model(self) -> dict[str, CompareConfig]:
        """One comparison for each of `models`, by a readable name; only this one without them."""
        if self.models is None:
            return {_model_name(self.model): self}
        found: dict[str, CompareConfig] = {}
        for model in self.models:
            name = _model_name(model)
            if name in found:
                raise ConfigError(f"models has two called {name!r}: give each once")
            found[name] = self.model_copy(update={"model": model, "models": None})
        return found

    @property
    def baseline_label(self) -> str:
        return self.baseline or self.methods[0].label

    def group(self, corpus_fingerprint: str) -> str:
        """The same for comparisons that differ only in methods and seeds, so more can be added."""
        crossed = {"crossed": list(self.crossed)} if self.crossed else {}
        return f"{self.name[:55]}-{short_digest({**self.setting(corpus_fingerprint), **crossed})}"

    def runs(self) -> list[TrainConfig]:
        """One configuration per method and seed, ordered by seed: early results are paired."""
        if self.models is not None:
            return [run for one in self.by_model().values() for run in one.runs()]
        common = {name: getattr(self, name) for name in RunConfig.model_fields}
        choices = [self._steering(choice) for choice in self.methods]
        if self.evaluation is not None and not any("evaluation" in choice for choice in choices):
            raise ConfigError(
                "evaluation is given, but none of "
                f"{', '.join(choice.label for choice in self.methods)} reads feedback"
            )
        common["trackers"] = self.trackers
        return [
            TrainConfig(**common, **choice, **seeds)
            for seeds in self._seeds()
            for choice in choices
        ]

    def _seeds(self) -> list[dict[str, Any]]:
        """The seeds of one run of each method. Crossed ones are numbered, so that they pair."""
        if not self.crossed:
            return [{"seed": seed} for seed in self.seeds]
        kept = dict.fromkeys(PARTS, self.seeds[0])
        combinations = product(self.seeds, repeat=len(self.crossed))
        return [
            {"seed": number, "part_seeds": {**kept, **dict(zip(self.crossed, one, strict=True))}}
            for number, one in enumerate(combinations)
        ]

    def _steering(self, choice: MethodChoice | PolicyChoice) -> dict[str, Any]:
        if isinstance(choice, MethodChoice):
            return {"method": choice}
        asked = self.evaluation is not None and choice.reads_feedback
        return {"policy": choice, **({"evaluation": self.evaluation} if asked else {})}


def _model_name(model: str | Mapping[str, Any]) -> str:
    """A preset's or a folder's name, or model type and digest of a mapping."""
    if isinstance(model, str):
        folder = Path(model)
        return _as_name(folder.parent.name if folder.name == "model" else folder.name)
    return f"{_as_name(str(model.get('model_type')))}-{short_digest(model)}"


def sha256_of_model(folder: Path) -> str:
    """Hash configuration and weights of a Hugging Face folder, all that decides its outputs.

    Raises `ConfigError` if the folder names files that cuvee does not read.
    """
    return hashlib.sha256("".join(map(_file_digest, find_base(folder).files)).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    about = path.stat()
    return f"{path.name} {_sha256_of(path, about.st_size, about.st_mtime_ns)}\n"


@functools.lru_cache(maxsize=64)
def _sha256_of(path: Path, size: int, changed: int) -> str:
    """Cached, because weights are large. `size` and `changed` detect a file that was replaced."""
    return sha256_of(path)


def _as_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)[:64] or "unnamed"


def short_digest(document: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits of a sha256 of plain JSON, independent of the order of keys."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:8]


def load(kind: type[Anything], path: Path, overrides: Sequence[str] = ()) -> Anything:
    """Read the configuration in `path` and apply `key=value` overrides.

    Its `name` defaults to the file's name. A method given as an override replaces a policy of the
    file, and the other way round. Raises `ConfigError` for a file that cannot be read, an
    unknown key (with the nearest known one) or a value out of range.
    """
    content = read_yaml(path)
    override(content, overrides, _sections_by_name(kind, content))
    _keep_given(content, overrides)
    _check_command(kind, content, path)
    if "name" not in content:
        content["name"] = _as_name(path.stem)
    return parse(kind, content, " ".join([str(path), *(overrides and ["with"]), *overrides]))


def _keep_given(content: dict[str, Any], overrides: Sequence[str]) -> None:
    """Let a method or policy on the command line replace the policy or method of the file."""
    given = {override.partition("=")[0].strip() for override in overrides}
    for one, other in (("method", "policy"), ("policy", "method")):
        if one in given and other not in given:
            content.pop(other, None)


def _check_command(kind: type[Any], content: Mapping[str, Any], path: Path) -> None:
    """Raise `ConfigError` for a comparison given to another command, and the other way round."""
    known = getattr(kind, "model_fields", {})
    if not known.keys() & {"method", "methods"} and content.keys() & {"method", "methods"}:
        raise ConfigError(
            f"{path} has a method, but `cuvee order-test` makes its own mixtures: give a file "
            "without `method` or `methods`"
        )
    if "method" in known and "methods" in content:
        raise ConfigError(
            f"{path} lists `methods`, so it is for `cuvee compare {path}`: for a run or a search, "
            "give one `method`"
        )
    if "methods" in known and "methods" not in content and content.keys() & {"method", "policy"}:
        raise ConfigError(
            f"{path} has one method or policy, so it is for `cuvee train {path}`: for "
            "`cuvee compare`, list several as `methods`"
        )


def _sections_by_name(kind: type[Any], content: Mapping[str, Any]) -> set[str]:
    """The sections whose keys are names of domains, with those of the method in `content`."""
    method = content.get("method")
    name = method.get("name") if isinstance(method, dict) else None
    own = by_name(METHODS.get(name), "method.") if name in METHODS.names() else set()
    return by_name(kind) | own


def parse(kind: type[Anything], content: Mapping[str, Any], source: str) -> Anything:
    """Turn `content` into a configuration. Error messages begin with `source`."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{source}: {explain(error, kind, content)}") from None
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    except CuveeError as error:  # a range check of a settings class
        raise ConfigError(f"{source}: {error}") from error
