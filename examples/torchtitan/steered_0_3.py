"""A toy llama of torchtitan 0.3 whose mixture AC-ODM steers.

torchtitan reads it with --module steered_0_3 --config steered
"""

import atexit
import os

from torchtitan.models.common.attention import ScaledDotProductAttention
from torchtitan.models.llama3.config_registry import llama3_debugmodel
from torchtitan.trainer import Trainer

from cuvee.data.corpus.corpus import Corpus
from cuvee.integrations.torchtitan import TitanSteering

corpus = Corpus.open(os.environ["CORPUS"])
steer = TitanSteering(corpus, "ac_odm", interval=2)


def steered() -> Trainer.Config:
    config = llama3_debugmodel()
    config.hf_assets_path = str(corpus.folder)
    model = config.model_spec.model
    model.layers = model.layers[:2]
    for layer in model.layers:  # FlexAttention is slow without a GPU
        layer.attention.inner_attention = ScaledDotProductAttention.Config()
    return steer.config(config)


@atexit.register
def show() -> None:
    for signals, mixture, _ in steer.controller.trajectory:
        print(signals.step, {name: round(share, 3) for name, share in mixture.as_dict().items()})
