"""What the worker's interpreter runs, by path: `python …/HiEndSegLib/engine/start_worker.py`.

Neither the current folder nor this one may be searched for modules (a `queue.py` lying about would break or hijack the
worker), and the package's parent goes last, so that nothing beside it in Slicer's module folder hides a library.
"""

import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))
_ROOT = os.path.dirname(os.path.dirname(_HERE))
sys.path[:] = [folder for folder in sys.path if folder and os.path.abspath(folder) != _HERE]
if _ROOT not in sys.path:
    sys.path.append(_ROOT)

if __name__ == "__main__":
    from HiEndSegLib.engine.worker import main

    sys.exit(main())
