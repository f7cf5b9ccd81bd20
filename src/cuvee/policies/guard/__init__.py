"""The guard: it wraps every policy that steers a real run and keeps it within limits.

Read `guard.py` first: it lists what happens to a proposed mixture. `limits` holds the settings and
the projection, `epochs` the epoch caps, `sanitizer` the check of signals, and `alarms` the
conditions under which the policy is stopped.
"""
