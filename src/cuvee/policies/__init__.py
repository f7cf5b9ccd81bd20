"""What decides the next mixture: `Fixed`, `Exp3`, and the `Guard` that wraps whatever steers a real run."""
