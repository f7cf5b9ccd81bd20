"""The Lightning Trainer with ODM, resumed where it stopped: python lightning_trainer.py CORPUS STEPS OUT"""

import sys
from pathlib import Path

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from cuvee.data.corpus.corpus import Corpus
from cuvee.integrations.lightning import CuveeData, SteerCallback


class Model(LightningModule):
    def configure_model(self) -> None:
        self.model = AutoModelForCausalLM.from_config(config)

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        logits_BLV = self.model(batch["input_ids"]).logits[:, :-1].float()
        labels_BL = batch["labels"][:, 1:]
        loss_BL = cross_entropy(logits_BLV.mT, labels_BL, reduction="none")
        counted = (labels_BL != -100).sum()
        steer.losses(loss_BL, denominator=counted)
        return loss_BL.sum() / counted

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


corpus, steps, out = Corpus.open(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
config = AutoConfig.for_model("llama", vocab_size=corpus.vocab_size, num_attention_heads=2, **sizes)
steer = SteerCallback(CuveeData(corpus, batch_size=4, sequence_length=64), "odm", interval=5)
saves = ModelCheckpoint(out, every_n_train_steps=5, save_last=True)
trainer = Trainer(max_steps=steps, callbacks=[steer, saves], logger=False)
trainer.fit(Model(), datamodule=steer.data, ckpt_path="last")
for signals, mixture, _ in steer.controller.trajectory:
    print(signals.step, {name: round(share, 3) for name, share in mixture.as_dict().items()})
