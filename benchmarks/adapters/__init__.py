"""One module for each framework: the same workloads, written as its users would write them.

A module has ``MODES``, ``init(mode, threads)``, which imports the framework and is called once, and
``make(workload, mode)``, which returns a ``Case``, or None where the mode has no such workload.
"""
