"""A plan as the files of trainers: one module for each format. `FORMATS` has them by name."""

from __future__ import annotations

from cuvee.recommend.writers import (
    axolotl,
    hf_datasets,
    levanter,
    llama_factory,
    megatron,
    nemo,
    olmo_core,
    schedule,
    torchtitan,
    trl,
)
from cuvee.recommend.writers.base import Writer

_MODULES = (
    megatron,
    nemo,
    torchtitan,
    levanter,
    olmo_core,
    axolotl,
    llama_factory,
    trl,
    hf_datasets,
    schedule,
)

FORMATS: dict[str, Writer] = {module.WRITER.name: module.WRITER for module in _MODULES}
