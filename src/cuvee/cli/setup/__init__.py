"""Commands that come before a run: `init`, `doctor`, `validate` and `questions`."""
