"""The stand-in's manners, rule by rule: each is the place where genuine PythonQt and plain PySide6 differ."""

from __future__ import annotations

import time

import pytest
from double import failures, pythonqt


@pytest.fixture
def qt(slicerApp):
    import qt
    return qt


def test_properties_are_attributes(qt):
    button = qt.QPushButton("go")
    assert button.text == "go" and button.enabled is True and button.name == ""
    button.text, button.enabled, button.checkable = "stop", False, True
    assert button.text == "stop" and button.isEnabled() is False and button.isCheckable() is True
    with pytest.raises(TypeError, match="not callable"):
        button.text()
    assert isinstance(button.width, int) and button.size.height() > 0
    with pytest.raises(AttributeError, match="only be read"):
        button.width = 3


def test_a_property_stays_one_where_a_subclass_writes_the_method_again(qt):
    layout = qt.QVBoxLayout()
    layout.spacing = 7
    assert layout.spacing == 7
    assert isinstance(qt.QListWidget().count, int)
    assert qt.QComboBox().currentIndex == -1


def test_what_is_no_property_stays_a_method(qt):
    outer = qt.QWidget()
    layout = qt.QVBoxLayout(outer)
    button = qt.QPushButton(outer)
    assert outer.layout() is layout and button.parent() is outer and callable(qt.QTimer.singleShot)
    button.setText("k")
    loop = qt.QEventLoop()
    qt.QTimer.singleShot(0, loop.quit)
    assert loop.exec_() == 0
    assert outer.className() == "QWidget"


def test_a_signal_that_does_not_exist_raises(qt):
    with pytest.raises(pythonqt.NoSuchSignal):
        qt.QPushButton().connect("clickedd()", print)
    with pytest.raises(pythonqt.NoSuchSignal):
        qt.QPushButton().disconnect("clickedd()", print)


def test_text_overloads_of_qt_5_are_refused(qt):
    for signature in ("currentIndexChanged(QString)", "activated(QString)"):
        with pytest.raises(pythonqt.NoSuchSignal):
            qt.QComboBox().connect(signature, print)


def test_a_slot_may_take_fewer_arguments(qt):
    button, heard = qt.QPushButton(), []
    button.connect("clicked(bool)", lambda: heard.append("none"))
    button.connect("clicked(bool)", lambda checked: heard.append(checked))
    button.connect("clicked()", lambda *all_: heard.append(all_))
    button.click()
    assert heard == ["none", False, ()]


def test_disconnect_says_whether_there_was_a_connection(qt):
    button, heard = qt.QPushButton(), []

    def slot():
        heard.append(1)
    button.connect("clicked()", slot)
    assert pythonqt.connection_count(button) == 1
    assert button.disconnect("clicked()", slot) is True
    assert button.disconnect("clicked()", slot) is False
    button.click()
    assert heard == [] and pythonqt.connection_count(button) == 0


def test_a_connection_holds_what_its_slot_belongs_to(qt):
    class Listener:
        heard = 0

        def onClick(self):
            Listener.heard += 1
    button = qt.QPushButton()
    button.connect("clicked()", Listener().onClick)
    button.click()
    assert Listener.heard == 1


def test_a_mistyped_attribute_raises_on_native_objects_only(qt):
    for thing in (qt.QPushButton(), qt.QTimer(), qt.QListWidgetItem(), qt.QVBoxLayout()):
        with pytest.raises(AttributeError):
            thing.enabeld = True
    with pytest.raises(AttributeError):
        qt.QPushButton().setText = print

    class Mine(qt.QPushButton):
        pass
    mine = Mine()
    mine.extra = 3
    assert mine.extra == 3


def test_doubles_are_as_strict_as_what_they_stand_for(slicerApp):
    import ctk
    import slicer

    for thing in (ctk.ctkCollapsibleButton(), ctk.ctkSearchBox(), slicer.qMRMLNodeComboBox(),
                  slicer.qMRMLSegmentationShow3DButton(), slicer.qMRMLSegmentEditorWidget()):
        with pytest.raises(AttributeError):
            thing.enabeld = True


def test_keyword_arguments_are_refused(qt):
    with pytest.raises(ValueError, match="keyword"):
        qt.QPushButton(text="k")
    with pytest.raises(ValueError, match="keyword"):
        qt.QLabel("k", parent=None)


def test_enum_members_on_instances(qt):
    process = qt.QProcess()
    assert process.Running == qt.QProcess.Running and qt.QMessageBox.Ok is not None
    assert qt.QHeaderView.ResizeToContents is not None and qt.Qt.UserRole + 1


def test_flags_are_not_numbers(qt):
    with pytest.raises(TypeError):
        qt.Qt.AlignLeft | 1
    with pytest.raises(TypeError):
        qt.Qt.AlignLeft == 1
    assert qt.Qt.AlignLeft | qt.Qt.AlignTop and qt.Qt.AlignLeft == qt.Qt.AlignLeft


def test_values_are_not_converted_quietly(qt):
    for value in (3, None):
        with pytest.raises(TypeError):
            qt.QLabel().setText(value)
        with pytest.raises(TypeError):
            qt.QLabel().text = value
    with pytest.raises(TypeError):
        qt.QProgressBar().value = 3.5
    with pytest.raises(TypeError):
        qt.QProgressBar().setValue(3.5)


def test_children_hold_a_stranger(qt):
    outer = qt.QWidget()
    inner = qt.QPushButton(outer)
    outer.connect("destroyed()", print)
    children = outer.children()
    assert isinstance(children, tuple) and inner in children
    assert any(not hasattr(child, "text") for child in children)


def test_what_pythonqt_lacks_is_refused(qt):
    for name in ("Signal", "Slot", "Property", "QRegExp", "QTextCodec", "NoSuchThing"):
        with pytest.raises(AttributeError):
            getattr(qt, name)


def test_an_exception_in_a_slot_is_recorded(qt, slicerApp):
    def boom():
        raise RuntimeError("boom")
    button = qt.QPushButton()
    button.connect("clicked()", boom)
    button.click()
    button.clicked.connect(boom)
    button.click()
    found = failures.taken()
    assert len(found) == 3 and all("boom" in text for text in found)


def test_an_exception_in_an_observer_is_recorded(slicerApp):
    import slicer

    def boom(caller, event):
        raise RuntimeError("observed")
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode")
    node.AddObserver("ModifiedEvent", boom)
    node.SetName("other")
    assert any("observed" in text for text in failures.taken())


def test_use_after_delete_is_an_error(qt):
    button = qt.QPushButton()
    button.delete()
    with pytest.raises(RuntimeError):
        button.setText("k")


def test_timers_tick(qt, slicerApp):
    timer, ticks = qt.QTimer(), []
    timer.setInterval(1)
    timer.connect("timeout()", lambda: ticks.append(1))
    timer.start()
    deadline = time.monotonic() + 5
    while not ticks and time.monotonic() < deadline:
        slicerApp.processEvents()
    timer.stop()
    assert ticks and timer.active is False
