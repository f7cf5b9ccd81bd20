"""A toy llama of torchtitan 0.2 whose mixture AC-ODM steers.

torchtitan imports it with --experimental.custom_import steered_0_2 --model.name steered
"""

import atexit
import dataclasses
import os

from torchtitan.models.llama3 import TransformerModelArgs, get_train_spec
from torchtitan.protocols.train_spec import register_train_spec

from cuvee.data.corpus.corpus import Corpus
from cuvee.integrations.torchtitan import TitanSteering

corpus = Corpus.open(os.environ["CORPUS"])
steer = TitanSteering(corpus, "ac_odm", interval=5)
toy = TransformerModelArgs(dim=32, n_layers=2, n_heads=2, vocab_size=corpus.vocab_size)
llama = dataclasses.replace(
    get_train_spec(), model_args={"toy": toy}, build_tokenizer_fn=None, build_validator_fn=None
)
register_train_spec("steered", steer.train_spec(llama))


@atexit.register
def show() -> None:
    for signals, mixture, _ in steer.controller.trajectory:
        print(signals.step, {name: round(share, 3) for name, share in mixture.as_dict().items()})
