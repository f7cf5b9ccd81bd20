"""Build a corpus from text, or import existing shards. Start with `build.py`.

The steps in order: `sources/` finds the files, `reading.py` cuts them into blocks of rows,
`documents.py` turns rows into documents, `survey.py` counts and samples them, and `tokenize.py`
writes token ids. `build_folder.py` makes a build resumable, and `worker_pool.py` runs the
processes. `adopt.py` imports Megatron shards, which `shards/` finds and joins. `quality.py` measures
lexical diversity.
"""
