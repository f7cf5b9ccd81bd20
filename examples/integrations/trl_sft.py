"""TRL's SFTTrainer with ODM, resumed where it stopped: python trl_sft.py CORPUS STEPS OUT"""

import sys

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from cuvee.data.corpus.corpus import Corpus
from cuvee.integrations.trl import SFTSteering

corpus, steps, out = Corpus.open(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=corpus.tokenizer(), eos_token="<eos>", pad_token="<pad>"
)
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
config = AutoConfig.for_model("llama", vocab_size=corpus.vocab_size, num_attention_heads=2, **sizes)
model = AutoModelForCausalLM.from_config(config)

steer = SFTSteering(corpus, policy="odm", interval=5, sequence_length=64, pieces=2)
args = steer.arguments(
    SFTConfig(
        out,
        max_steps=steps,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        save_steps=5,
        bf16=torch.cuda.is_available(),
        dataset_kwargs={"skip_prepare_dataset": True},
        report_to="none",
    )
)
trainer = SFTTrainer(model, args, processing_class=tokenizer, **steer.trainer_kwargs())
trainer.train(resume_from_checkpoint=steer.resume(out))
for signals, mixture, _ in steer.controller.trajectory:
    print(signals.step, {name: round(share, 3) for name, share in mixture.as_dict().items()})
