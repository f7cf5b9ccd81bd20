"""The store of runs, in SQLite or PostgreSQL. Start with `store.py`.

`claim.py` is a worker's exclusive right to write to a run. `schema.py` defines the tables,
`rows.py` converts and checks rows, `database.py` runs transactions, and `address.py` parses store
URLs. `foreign.py` imports tables of runs from other projects.
"""
