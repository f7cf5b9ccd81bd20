"""Run many proxies and store what they measure. Start with `engine.py`.

- `store/` is the database of runs: SQLite or PostgreSQL.
- `journal.py` records one run so that it can be resumed; `attempts.py` keeps its checkpoints.
- `engine.py` is the driver that all engines share; `local.py`, `ray.py` and `slurm.py` start its
  workers.
- `worker.py` is the loop of a worker process; `task.py` describes one run as JSON.
"""
