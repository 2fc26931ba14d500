"""Small things that several parts of the panel do with widgets."""

from __future__ import annotations

import functools

import qt


def setText(label, text):
    """A label's text; an empty label takes no room."""
    if label.text != text:
        label.setText(text)
    label.setVisible(bool(text))


def fillRows(rows, texts):
    """Make a QListWidget hold these (text, tooltip) rows, keeping its items where it can."""
    while rows.count > len(texts):
        rows.takeItem(rows.count - 1)
    for index, (text, tooltip) in enumerate(texts):
        if index >= rows.count:
            rows.addItem(text)          # the list makes the item, and owns it
        item = rows.item(index)
        if item.text() != text:
            item.setText(text)
        item.setToolTip(tooltip)


def fitHeight(rows, least, most):
    """Make a list as high as its rows, within limits; it scrolls beyond."""
    shown = min(max(rows.count, least), most)
    height = rows.sizeHintForRow(0) if rows.count else rows.fontMetrics().height()
    rows.setFixedHeight(shown * height + 2 * rows.frameWidth + 2)


def swatch(color):
    """An icon of one color, (r, g, b) in 0 to 255."""
    pixmap = qt.QPixmap(12, 12)
    pixmap.fill(qt.QColor(*color))
    return qt.QIcon(pixmap)


def warningPixmap(widget):
    """The sign that the style puts beside warnings."""
    return widget.style().standardIcon(qt.QStyle.SP_MessageBoxWarning).pixmap(18, 18)


class Connections:
    """Slots on widgets' signals, undone in one go: (widget, signal, slot) triples, or (button, slot) for its clicks."""

    def __init__(self, *held):
        self._held = [one if len(one) == 3 else (one[0], "clicked()", one[1]) for one in held]
        for widget, signal, slot in self._held:
            widget.connect(signal, slot)

    def close(self):
        """Listen to nothing any more. Safe to call twice."""
        for widget, signal, slot in self._held:
            widget.disconnect(signal, slot)
        self._held = []


class ButtonRow:
    """Buttons that come and go in a layout: a question's choices, a failure's remedies."""

    def __init__(self, layout):
        self._layout, self._buttons = layout, []

    def fill(self, choices):
        """choices: (text, function) pairs; what was there goes."""
        self.clear()
        for text, function in choices:
            button = qt.QPushButton(text)
            button.setToolTip(text)
            button.connect("clicked()", function)
            self._layout.addWidget(button)
            self._buttons.append((button, function))

    def clear(self):
        for button, function in self._buttons:
            button.disconnect("clicked()", function)
            button.hide()
            button.deleteLater()        # not at once: its click may be what called us
        self._buttons = []


class QuestionBox:
    """A question in the panel. Nothing is modal: the person may look at the slices before answering."""

    def __init__(self, box, label, layout, answer):
        self._box, self._label, self._answer = box, label, answer
        self._row, self._shown = ButtonRow(layout), None
        box.setVisible(False)

    def show(self, question):
        """question: a presenter's `Question`, or None."""
        if question == self._shown:
            return
        self._shown = question
        self._box.setVisible(question is not None)
        if question is None:
            self._row.clear()
            return
        setText(self._label, question.text)
        self._row.fill([(choice.text, functools.partial(self._answer, choice.id)) for choice in question.choices])

    def clear(self):
        self._row.clear()
