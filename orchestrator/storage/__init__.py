"""Where Dagster keeps its runs, events and logs: chosen by settings alone; and who of several may work on them.

dagster.yaml names `orchestrator.storage.choice`. Nothing is exported here: who asks for an address or the lease does
without Dagster, whose import takes a second.
"""
