"""The module `ctk`: the few widgets of CTK that the panel uses, drawn as simply as they can be."""

from __future__ import annotations

import types

from PySide6 import QtCore, QtWidgets

Property, Signal = QtCore.Property, QtCore.Signal
_HEAD = 26


class _Collapsible:
    """What both collapsible widgets share: direct children are hidden while collapsed and come back as they were."""

    def _begin(self):
        self._collapsed, self._hidden = False, []
        self.setCheckable(True)
        self.setChecked(True)
        self.toggled.connect(lambda on: self.setCollapsed(not on))

    def _isCollapsed(self):
        return self._collapsed

    def setCollapsed(self, collapsed):
        if collapsed == self._collapsed:
            return
        self._collapsed = bool(collapsed)
        self.setChecked(not collapsed)
        if not collapsed:
            for widget in self._hidden:
                widget.setVisible(True)
            self._hidden = []
        self._hide_children()
        if isinstance(self, QtWidgets.QGroupBox):
            self.setFlat(self._collapsed)
        self.setMaximumHeight(self._head() if collapsed else 16777215)
        self.updateGeometry()

    def _hide_children(self):
        """Also those that the form added after it set the property."""
        if not self._collapsed:
            return
        for widget in self.findChildren(QtWidgets.QWidget, options=QtCore.Qt.FindChildOption.FindDirectChildrenOnly):
            if not widget.isHidden():
                self._hidden.append(widget)
                widget.setVisible(False)

    def showEvent(self, event):
        self._hide_children()

    def _head(self):
        return _HEAD


class ctkCollapsibleButton(_Collapsible, QtWidgets.QAbstractButton):
    """A section: its head is a button, what lies in its layout is hidden while it is collapsed."""

    _stands_for_native = True
    SIGNALS = {"contentsCollapsed(bool)": "_contentsCollapsed"}
    _contentsCollapsed = Signal(bool)

    def __init__(self, *arguments):
        texts = [a for a in arguments if isinstance(a, str)]
        QtWidgets.QAbstractButton.__init__(self, *[a for a in arguments if not isinstance(a, str)])
        self._begin()
        if texts:
            self.setText(texts[0])
        self.setContentsMargins(0, _HEAD, 0, 0)
        self.setSizePolicy(QtWidgets.QSizePolicy.Policy.Preferred, QtWidgets.QSizePolicy.Policy.Maximum)

    def setCollapsed(self, collapsed):
        before = self._collapsed
        _Collapsible.setCollapsed(self, collapsed)
        if before != self._collapsed:
            self._contentsCollapsed.emit(self._collapsed)

    collapsed = Property(bool, _Collapsible._isCollapsed, setCollapsed)

    def minimumSizeHint(self):
        if self._collapsed or self.layout() is None:
            return QtCore.QSize(60, _HEAD)
        return self.layout().totalMinimumSize()

    def sizeHint(self):
        if self._collapsed or self.layout() is None:
            return QtCore.QSize(120, _HEAD)
        return self.layout().totalSizeHint()

    def hitButton(self, position):
        return position.y() < _HEAD

    def paintEvent(self, event):
        painter = QtWidgets.QStylePainter(self)
        option = QtWidgets.QStyleOptionButton()
        option.initFrom(self)
        option.rect = QtCore.QRect(0, 0, self.width, _HEAD - 2)
        painter.drawControl(QtWidgets.QStyle.ControlElement.CE_PushButtonBevel, option)
        arrow = QtWidgets.QStyleOption()
        arrow.initFrom(self)
        arrow.rect = QtCore.QRect(8, 6, 12, 12)
        elements = QtWidgets.QStyle.PrimitiveElement
        painter.drawPrimitive(elements.PE_IndicatorArrowRight if self._collapsed else elements.PE_IndicatorArrowDown,
                              arrow)
        painter.drawText(QtCore.QRect(26, 0, self.width - 30, _HEAD - 2),
                         QtCore.Qt.AlignmentFlag.AlignVCenter | QtCore.Qt.AlignmentFlag.AlignLeft, self.text)


class ctkCollapsibleGroupBox(_Collapsible, QtWidgets.QGroupBox):
    """A group with a triangle; collapsed, it is one line high."""

    _stands_for_native = True
    SIGNALS = {}

    def __init__(self, *arguments):
        QtWidgets.QGroupBox.__init__(self, *arguments)
        self._begin()
        self.setStyle(_triangles())

    collapsed = Property(bool, _Collapsible._isCollapsed, _Collapsible.setCollapsed)

    def _head(self):
        return self.fontMetrics().height() + 6

    def showEvent(self, event):
        self._hide_children()
        self.setFlat(self._collapsed)


class ctkSearchBox(QtWidgets.QLineEdit):
    _stands_for_native = True
    SIGNALS = {}

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._icon = False
        self.setClearButtonEnabled(True)

    def _getIcon(self):
        return self._icon

    def setShowSearchIcon(self, on):
        self._icon = bool(on)

    showSearchIcon = Property(bool, _getIcon, setShowSearchIcon)


class _Triangles(QtWidgets.QProxyStyle):
    """Draws a group box's check mark as a triangle, as CTK does."""

    def drawPrimitive(self, element, option, painter, widget=None):
        elements = QtWidgets.QStyle.PrimitiveElement
        if element == elements.PE_IndicatorCheckBox and isinstance(widget, ctkCollapsibleGroupBox):
            element = elements.PE_IndicatorArrowRight if widget._isCollapsed() else elements.PE_IndicatorArrowDown
        super().drawPrimitive(element, option, painter, widget)


def _triangles():
    if not hasattr(_triangles, "style"):
        _triangles.style = _Triangles("Fusion")
    return _triangles.style


OFFERED = (ctkCollapsibleButton, ctkCollapsibleGroupBox, ctkSearchBox)


def make() -> types.ModuleType:
    module = types.ModuleType("ctk")
    for cls in OFFERED:
        setattr(module, cls.__name__, cls)
    return module
