"""The widgets of the HiEndSeg module: read from and written to presenters' states, and nothing else.

Beside `HiEndSeg.py`, which makes them. Decisions and wording are in `HiEndSegLib/presenter`. segment.py, results.py,
editor.py, models.py, setup.py: one part of the panel each. parameters.py: what is saved with the scene. settings.py: what
belongs to the machine. machine.py: the one engine of this Slicer.
"""
