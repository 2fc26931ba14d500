"""HiEndSeg's library: geometry, networks, models, operations, engine and MRML bridge, without Qt.

Importing this package imports nothing heavy: no torch, no VTK, no file readers.
For research use; not a medical device.
"""

__version__ = "0.1.0"
