"""One file a method: its formula, its citation, what it proposes and what it commits to."""
