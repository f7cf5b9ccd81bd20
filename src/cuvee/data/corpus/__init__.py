"""The corpus on disk: manifest, shards, tokenizer, and the pools of tokens that they hold."""
