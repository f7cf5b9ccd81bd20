"""One file a method: its formula, its citation, what it proposes and what it commits to. `METHODS` is the list of them."""

from __future__ import annotations

from typing import Any

from cuvee.methods.ac_odm import ACODM
from cuvee.methods.baselines.random_walk import RandomWalk
from cuvee.methods.baselines.schedule import Schedule
from cuvee.methods.baselines.static import (
    Given,
    Natural,
    SourceOnly,
    TargetOnly,
    Temperature,
    Uniform,
)
from cuvee.methods.data_mixing_agent import DataMixingAgent
from cuvee.methods.doge import DoGE
from cuvee.methods.doremi import DoReMi
from cuvee.methods.hds import HDS
from cuvee.methods.odm import ODM
from cuvee.methods.regmix.method import RegMix

METHODS: dict[str, type[Any]] = {
    "natural": Natural,
    "uniform": Uniform,
    "temperature": Temperature,
    "source_only": SourceOnly,
    "target_only": TargetOnly,
    "given": Given,
    "schedule": Schedule,
    "random_walk": RandomWalk,
    "regmix": RegMix,
    "odm": ODM,
    "doge": DoGE,
    "doremi": DoReMi,
    "ac_odm": ACODM,
    "hds": HDS,
    "data_mixing_agent": DataMixingAgent,
}
"""Name in a configuration → class; the class is a dataclass whose fields are the method's options."""
