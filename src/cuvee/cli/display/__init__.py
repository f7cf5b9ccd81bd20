"""How the command line shows runs, fleets and audits."""
