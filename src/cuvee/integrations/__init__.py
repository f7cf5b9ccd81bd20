"""Other people's trainers, trackers and formats."""
