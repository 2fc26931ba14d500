"""The browser face: the same sections and words as the desktop module, in a page served from this computer.

lobby.py is what listens: it checks who may come in and gives every tab a process of its own. session.py is that
process: a scene, the presenters and the page. page.py and panels/: what is shown; binding.py: presenters' states as the
page's state. views.py: everything that touches trame-slicer. guard.py, uploads.py, reading.py, downloads.py: what goes
in and out; files are opened in a process of their own.
"""
