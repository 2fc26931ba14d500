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


def fillBox(box, texts):
    """Make a QComboBox hold these (text, tooltip) rows; what is chosen is set afterwards."""
    if [box.itemText(index) for index in range(box.count)] != [text for text, _tooltip in texts]:
        box.clear()
        for text, _tooltip in texts:
            box.addItem(text)
    for index, (_text, tooltip) in enumerate(texts):
        box.setItemData(index, tooltip, qt.Qt.ToolTipRole)


def fillTree(rows, headers, texts):
    """Make a QTreeWidget hold these (texts of a row, tooltip), keeping its items where it can; gives the items."""
    rows.setColumnCount(len(headers))
    rows.setHeaderLabels(list(headers))
    while rows.topLevelItemCount > len(texts):
        rows.takeTopLevelItem(rows.topLevelItemCount - 1)
    for index, (columns, tooltip) in enumerate(texts):
        item = rows.topLevelItem(index) if index < rows.topLevelItemCount else qt.QTreeWidgetItem(rows)
        for column, text in enumerate(columns):
            if item.text(column) != text:
                item.setText(column, text)
            item.setToolTip(column, tooltip)
            if column:
                item.setTextAlignment(column, qt.Qt.AlignRight | qt.Qt.AlignVCenter)
    header = rows.header()
    header.setStretchLastSection(False)
    header.setSectionResizeMode(0, qt.QHeaderView.Stretch)
    for column in range(1, len(headers)):
        header.setSectionResizeMode(column, qt.QHeaderView.ResizeToContents)
    return [rows.topLevelItem(index) for index in range(len(texts))]


def fitTree(rows, most):
    """Make a QTreeWidget as high as its rows, up to `most`; after check marks and icons, which make rows higher."""
    shown = max(1, min(rows.topLevelItemCount, most))
    rows.setFixedHeight(rows.header().sizeHint.height() + 2 * rows.frameWidth
                        + shown * max(rows.sizeHintForRow(0), rows.fontMetrics().height()))


def fillTable(table, headers, texts, most):
    """Make a QTableWidget show these rows of texts, the first column stretched; as high as they are up to `most`."""
    table.setColumnCount(len(headers))
    table.setRowCount(len(texts))
    table.setHorizontalHeaderLabels(list(headers))
    for row, columns in enumerate(texts):
        for column, text in enumerate(columns):
            item = qt.QTableWidgetItem(text)
            if column:
                item.setTextAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
            table.setItem(row, column, item)
    table.resizeColumnsToContents()
    if headers:
        table.horizontalHeader().setSectionResizeMode(0, qt.QHeaderView.Stretch)
    table.resizeRowsToContents()
    height = table.horizontalHeader().sizeHint.height() + 2 * table.frameWidth
    table.setFixedHeight(height + sum(table.rowHeight(row) for row in range(min(len(texts), most))))


def fitHeight(rows, least, most):
    """Make a list as high as its rows, within limits; it scrolls beyond."""
    shown = min(max(rows.count, least), most)
    height = rows.sizeHintForRow(0) if rows.count else rows.fontMetrics().height()
    rows.setFixedHeight(shown * height + 2 * rows.frameWidth + 2)


def modelTitle(row):
    """A model's line in a list; a version stands under what it was adapted from."""
    return "    " * row.depth + row.title


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
