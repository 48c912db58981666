"""Scheduling: stages, fusion, array contraction, the memory plan."""
