"""What the software costs: measured, one question a file. Run as `python -m benchmarks.NAME`."""
