"""Probes: what is measured on a model while it trains.

A policy declares the probes that it needs as `probes`: `LossByDomain` (always measured),
`WeightNorms`, `GradientAlignment`, `EvaluationSet`, or one registered with `register_probe`.
A probe is a small settings object. Its `attach(context)` returns a `Meter`, which watches the
training steps on each rank. `Meters` drives all meters of one training loop; cuvee's trainer and
the integrations use it. Measurements reach the policy in `Signals.probes`, by signal name.
"""
