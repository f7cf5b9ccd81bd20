"""What a finished run is worth, and whether two runs differ."""
