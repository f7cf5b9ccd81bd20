"""A plain PyTorch loop whose data mixture ODM steers: python plain_pytorch.py CORPUS STEPS"""

import sys

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from cuvee import Mixture, MixtureStream
from cuvee.data.corpus.corpus import Corpus
from cuvee.integrations.controller import Controller
from cuvee.methods.odm import ODM

corpus, steps = Corpus.open(sys.argv[1]), int(sys.argv[2])
stream = MixtureStream(
    corpus, Mixture.natural(corpus.domains), batch_size=8, sequence_length=64, seed=0
)
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
config = AutoConfig.for_model("llama", vocab_size=corpus.vocab_size, num_attention_heads=2, **sizes)
model = AutoModelForCausalLM.from_config(config)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
controller = Controller(ODM().commit(corpus, ()), stream, model, interval=5, steps=steps)

controller.begin()  # before the first batch is read
while not controller.done:
    batch = next(stream)
    tokens_BL = torch.from_numpy(batch.tokens_BL)
    with controller.step(batch) as step:
        logits_BLV = model(tokens_BL).logits[:, :-1].float()
        loss_BL = cross_entropy(logits_BLV.mT, tokens_BL[:, 1:], reduction="none")
        counted_BL = torch.from_numpy(batch.counted_BL[:, 1:])
        step.losses(loss_BL, denominator=counted_BL.sum())
        (loss_BL * counted_BL).sum().div(counted_BL.sum()).backward()
        step.before_update()
        optimizer.step()
        optimizer.zero_grad()
for signals, mixture, _ in controller.trajectory:
    print(signals.step, {name: round(share, 3) for name, share in mixture.as_dict().items()})
