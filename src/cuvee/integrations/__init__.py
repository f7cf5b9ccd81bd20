"""Integrations: cuvee's decisions inside training loops of other libraries, and export for them.

`Controller` steers the mixture of any PyTorch training loop, one `Step` at a time. `Steering` and
`SFTSteering` use it in the Hugging Face `Trainer` and in TRL's `SFTTrainer`; `LaneRows` and `Rows`
are their data. `minari` exports runs as a dataset for offline reinforcement learning.
"""
