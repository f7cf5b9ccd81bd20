"""The stream: permutation → row counts → plan → windows → batches."""
