"""The widgets of the HiEndSeg module: read from and written to presenters' states, and nothing else.

Beside `HiEndSeg.py`. Decisions and wording are in `HiEndSegLib/presenter`. panel.py: the whole; sections.py: what it
shows once all is installed; segment.py, results.py, editor.py, adapt.py, attention.py, models.py, setup.py: one part
each. plot.py: a chart inside the panel. parameters.py: what is saved with the scene. settings.py: what belongs to the
computer. machine.py: the one engine of this Slicer. scripting.py: segmenting and adapting for scripts. scenarios.py:
the self test.
"""
