"""What can go wrong for a user. Every message names the value and the remedy; a broken invariant of our own asserts."""

from __future__ import annotations


class CuveeError(Exception):
    """A mistake that the user can mend. The command line prints it without a traceback."""


class MixtureError(CuveeError):
    """Weights that are no point on the simplex, or that name the wrong domains."""


class SignalError(CuveeError):
    """A measurement that is not finite and was not declared absent."""


class CorpusError(CuveeError):
    """A corpus, a raw source or a domain that cannot be used as asked."""


class ShardError(CorpusError):
    """A `.bin`/`.idx` file that is truncated, inconsistent or not what its manifest says."""


class FingerprintMismatch(CorpusError):
    """State saved on one corpus was offered to another. The message holds both fingerprints."""


class CorpusExhausted(CorpusError):
    """Every domain has met its epoch cap: there is nothing left to draw."""


class ConfigError(CuveeError):
    """A configuration with an unknown key, a value out of range or a missing file."""


class PolicyError(CuveeError):
    """A policy that cannot steer this run, or a policy file that cannot be read."""


class CheckpointError(CuveeError):
    """A checkpoint that is incomplete, altered or made for something else."""


class StoreError(CuveeError):
    """A run store that cannot be reached, is of another version, or refused a write."""


class TrainingError(CuveeError):
    """A run that cannot go on: a loss that is not finite, a device without memory, ranks that disagree."""
