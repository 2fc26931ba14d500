"""Equality with the authors' code: compare our networks with recordings made by theirs.

``python -m training.parity FILE [--weights FILE]`` reads one recording (a dictionary of tensors and plain values),
rebuilds the network from its ``config``, runs it in float32 and prints the largest difference per recorded tensor.
One file per kind of recording; `kinds` is the list of them.
"""
