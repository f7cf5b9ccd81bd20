"""Ingest: sources of text → documents → splits → tokens → a corpus."""
