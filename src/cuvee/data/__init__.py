"""Text → labelled documents → tokens → shards → corpus → order → stream: everything that happens before a model sees a batch."""
