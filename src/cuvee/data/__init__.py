"""From raw text to training batches: everything that happens before a model sees a batch.

- `corpus/` is the format on disk: manifest, shards, tokenizer. Start with `corpus/corpus.py`.
- `ingest/` builds a corpus from text files, or imports existing Megatron shards.
- `label/` sorts raw documents into domains before they are ingested.
- `stream/` draws batches from a corpus under a mixture that can change at any step.
"""
