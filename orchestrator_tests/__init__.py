"""The tests; one flat file per module, named after behaviour."""
