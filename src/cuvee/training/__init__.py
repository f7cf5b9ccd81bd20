"""Training: `LMTrainer` trains a Hugging Face causal language model on a mixture stream.

`settings` describes a run except for model, data and mixture. `model` builds a model from a preset,
a configuration or a folder (`base_model`), and `export` writes it back. `loss`, `update` and
`validation` are the parts of a step. `checkpoint` stores the state of a run. `distributed` combines
several ranks. `together` batches the passes of several trainers in one process.
"""
