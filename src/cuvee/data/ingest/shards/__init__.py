"""Token shards of other programs: `finding.py` finds the files of each domain, and `joining.py`
copies the parts of a domain into one shard."""
