"""One module per system that we talk to; nothing here knows of Dagster assets."""
