"""Runs as files for people and other programs: report pages, diagnostics, exports."""
