"""HiEndSeg's library: geometry, networks, models, operations, engine, MRML bridge and presenter, without Qt.

Importing this package imports nothing heavy: no torch, no VTK, no file readers.
For research use; not a medical device.
"""

__version__ = "0.1.0"
