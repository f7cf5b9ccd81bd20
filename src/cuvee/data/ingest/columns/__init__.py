"""Reads the text and domain columns of Parquet, Arrow and CSV files."""
