"""What one defs.yaml turns into: partitions, sensor, job and assets of one ML project."""
