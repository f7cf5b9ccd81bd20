"""What recipes report while they work, and how they are stopped."""
