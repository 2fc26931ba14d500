"""Cost of the networks, measured side by side: ``python -m training.benchmarks tile`` and ``... pretrain``.

Not a test: timings belong to a machine, and the machine is printed.
"""
