"""The supervisor that runs on the instance, and our side of it."""
