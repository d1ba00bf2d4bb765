"""What several test modules share; the first line of each module says for which."""
