"""A fault campaign: trains builds on the real stack, breaks it in every phase, checks that nothing leaks or lies."""
