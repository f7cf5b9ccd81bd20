"""The Hugging Face Trainer with AC-ODM, resumed where it stopped: python huggingface_trainer.py CORPUS STEPS OUT"""

import sys

from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

from cuvee.data.corpus.corpus import Corpus
from cuvee.integrations.huggingface import Steering

corpus, steps, out = Corpus.open(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
config = AutoConfig.for_model("llama", vocab_size=corpus.vocab_size, num_attention_heads=2, **sizes)
model = AutoModelForCausalLM.from_config(config)

steer = Steering(corpus, policy="ac_odm", interval=5, sequence_length=64)
args = steer.arguments(
    TrainingArguments(
        out,
        max_steps=steps,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        save_steps=5,
        report_to="none",
    )
)
trainer = Trainer(model, args, **steer.trainer_kwargs())
trainer.train(resume_from_checkpoint=steer.resume(out))
for signals, mixture, _ in steer.controller.trajectory:
    print(signals.step, {name: round(share, 3) for name, share in mixture.as_dict().items()})
