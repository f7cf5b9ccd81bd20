"""What is measured on a model while it trains. A policy names probes; a trainer attaches their meters."""
