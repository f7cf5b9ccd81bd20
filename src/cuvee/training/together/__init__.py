"""Several trainers in one process, their passes batched."""
