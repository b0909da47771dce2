"""Flows: compositions of tasks and the forms they are started with. Nothing here computes."""
