"""Programs that are started, awaited and surely ended."""
