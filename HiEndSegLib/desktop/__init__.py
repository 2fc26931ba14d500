"""What only the Slicer application can do, apart from widgets: sample data, terminology, installing packages.

Floor 6, beside the module file, which calls it. `slicer` and `qt` are imported inside functions or handed in, so that
these files can be imported anywhere, cost nothing at Slicer's start, and run in tests on stand-ins. Nothing here may
need a package that is not installed yet: the page that installs them is built on it.

startup.py: what happens once Slicer has started. samples.py: the sample CT. installer.py: PyTorch and the other
packages. wheels.py: a folder of packages for a computer without a network.
"""
