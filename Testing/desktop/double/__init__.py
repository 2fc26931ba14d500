"""A stand-in for desktop Slicer: PythonQt's manners on PySide6, Slicer's widgets and application over `slicer-core`.

`start()` once per process, before the module under test is imported. What it cannot prove is listed in the README
beside it. Where genuine PythonQt fails or silently differs, the stand-in raises, so that a test fails.
"""

from __future__ import annotations

import os
import sys


def start(folder):
    """Put `qt`, `ctk` and the desktop's part of `slicer` in place; returns the application (`slicer.app`).

    folder: an empty folder of the caller's for settings, temporary files and the launcher named PythonSlicer.
    """
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")
    os.environ.setdefault("LC_ALL", "C.UTF-8")       # Qt prints a warning about every other non-UTF-8 locale
    import PySide6
    import slicer                                    # before the rest: it imports what lies beside it

    found = tuple(int(part) for part in PySide6.__version__.split(".")[:2])
    if not (6, 9) <= found < (6, 12):
        raise RuntimeError(f"PySide6 {PySide6.__version__} does not carry the stand-in; install "
                           "'PySide6-Essentials>=6.9,<6.12'.")

    from . import application, ctk_module, dialogs, mrml_widgets, packages, pythonqt, qt_module, scripted
    from . import plot_widgets, segmentation_widgets

    if getattr(slicer, "app", None) is not None:
        return slicer.app
    pythonqt.dress_everything()
    sys.modules["qt"] = qt_module.make()
    sys.modules["ctk"] = ctk_module.make()
    dialogs.install()
    for widgets in (mrml_widgets, segmentation_widgets, plot_widgets, scripted):
        for cls in widgets.OFFERED:
            setattr(slicer, cls.__name__, cls)
    packages.install(slicer)
    return application.start(slicer, folder)
