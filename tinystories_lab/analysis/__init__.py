"""What a run, its data and its stories look like when they are examined."""
