"""Presenter: what a face shows and which action is possible when, as plain data. Knows no Qt, no trame and no torch.

A face makes one `SegmentPresenter` per window, gives it its scene and its engine, binds widgets to `presenter.state`
whenever `presenter.changed` is emitted, calls actions, and calls `tick()` from a timer (30 to 50 ms):

    presenter = SegmentPresenter(scene=scene, engine=EngineClient(), registry=Registry(), settings={})
    presenter.changed.connect(self.show)          # reads presenter.state, writes widgets
    presenter.enter()                             # the section is on screen: models are read, devices looked at
    presenter.set_volume(node)
    presenter.press()                             # the big button: Segment, or Cancel while something runs

state.py: the dataclasses. segment.py: the state machine. models.py, setup.py: the model list and first use. wording.py:
translation. Importing this package imports nothing but the standard library. Everything runs on the thread that calls.
"""
