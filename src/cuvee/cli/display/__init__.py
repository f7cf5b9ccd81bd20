"""How the command line displays runs, fleets and audits."""
