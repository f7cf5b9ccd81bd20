"""Conformance suites and test doubles for code that implements cuvee's interfaces.

Subclass `PolicySuite`, `AgentSuite`, `TrainerSuite`, `StreamSuite` or `StoreSuite` in your own
tests and implement the factory that it names; pytest collects the rest. `ToyTrainer` and `runs`
provide trainers and runs without a model. `faults`, `stream_faults` and `postgres` plant failures.
"""
