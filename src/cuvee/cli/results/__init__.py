"""Commands about runs that exist: runs, evaluate and report."""
