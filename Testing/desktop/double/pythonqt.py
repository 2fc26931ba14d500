"""PySide6's classes given PythonQt's manners.

Properties are attributes, `connect` takes a signature, a mistyped attribute, signal or keyword argument raises. What
each rule is for stands in the README beside; Testing/desktop/test_double_pythonqt.py tests them one by one.
"""

from __future__ import annotations

import enum
import inspect

import shiboken6
from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

from . import failures

MODULES = (QtCore, QtGui, QtWidgets, QtUiTools)
#: Classes of the stand-in whose instances must be as strict as native ones carry this attribute.
NATIVE = "_stands_for_native"
#: Names that PythonQt keeps as methods although a Qt property is called so (static methods of PySide).
LEFT_ALONE = {"singleShot"}

_original_attribute = QtCore.QObject.__getattribute__
_connections: dict[int, dict] = {}
_dressed: set[type] = set()


class NoSuchSignal(AttributeError):
    """PythonQt prints a line, returns False and goes on; here a test shall fail."""


def dress_everything() -> None:
    """Change the classes of PySide6 in place, once per process. No other PySide code may run in it afterwards."""
    if _dressed:
        return
    failures.install()
    found = {getattr(module, name) for module in MODULES for name in dir(module)
             if isinstance(getattr(module, name, None), type)}
    for cls in sorted(found, key=lambda c: len(c.__mro__)):        # bases first
        if issubclass(cls, enum.Enum) or not type(cls).__module__.startswith("Shiboken"):
            continue
        _copy_enums(cls)
        if issubclass(cls, QtCore.QObject):
            _dress_properties(cls)
        if not issubclass(cls, QtCore.QCoreApplication):
            _refuse_keywords(cls)
        _make_strict(cls)
        _dressed.add(cls)
    QtCore.QObject.name = property(lambda self: QtCore.QObject.property(self, "objectName"),
                                   lambda self, value: self.setObjectName(value))
    QtCore.QObject.className = lambda self: self.metaObject().className()
    QtCore.QObject.delete = lambda self: shiboken6.delete(self)
    QtCore.QObject.children = _children(QtCore.QObject.children)
    QtCore.QObject.__getattribute__ = _attribute
    for cls in (QtWidgets.QDialog, QtWidgets.QMenu, QtCore.QEventLoop):
        cls.exec_ = cls.exec


def _own(cls: type, name: str):
    """An attribute as a class or a base wrote it, without PySide's search for enum members."""
    return next((base.__dict__[name] for base in cls.__mro__ if name in base.__dict__), None)


def _copy_enums(cls: type) -> None:
    """`process.Running` works on instances in PythonQt."""
    for member_class in list(cls.__dict__.values()):
        if isinstance(member_class, type) and issubclass(member_class, enum.Enum):
            for name, member in member_class.__members__.items():
                if _own(cls, name) is None:
                    setattr(cls, name, member)
            if issubclass(member_class, enum.IntFlag):
                _separate_from_int(member_class)


def _separate_from_int(flags: type) -> None:
    """Flags are like numbers in Qt 5's PythonQt and not in Qt 6's: mixing them is refused."""
    if "__or__" in flags.__dict__ and flags.__dict__["__or__"].__module__ == __name__:
        return
    union = flags.__or__

    def __or__(self, other):
        if type(other) is int:
            raise TypeError(f"{flags.__name__} | int: not the same in Qt 5 and Qt 6")
        return union(self, other)

    def __eq__(self, other):
        if type(other) is int:
            raise TypeError(f"{flags.__name__} == int: not the same in Qt 5 and Qt 6")
        return self is other or (isinstance(other, flags) and int(self) == int(other))

    flags.__or__ = flags.__ror__ = __or__
    flags.__eq__, flags.__hash__ = __eq__, enum.IntFlag.__hash__


def _dress_properties(cls: type) -> None:
    """A Python property over every Qt property, also where a subclass writes the method anew (QVBoxLayout.spacing)."""
    meta = cls.staticMetaObject
    for index in range(meta.propertyCount()):
        name = meta.property(index).name()
        if index < meta.propertyOffset() and name not in cls.__dict__:
            continue
        found = _own(cls, name)
        if name in LEFT_ALONE or isinstance(found, (staticmethod, property)) or _is_static(cls, name):
            continue
        setattr(cls, name, _property(cls, name, found, meta.property(index).isWritable()))
        _strict_setter(cls, "set" + name[0].upper() + name[1:], meta.property(index).typeName())


def _strict_setter(cls: type, name: str, kind: str) -> None:
    """PythonQt quietly makes text of None and whole numbers of floats; refused here."""
    setter = cls.__dict__.get(name)
    if setter is None or kind not in ("QString", "int"):
        return
    wanted = str if kind == "QString" else int

    def strict(self, *values):
        if len(values) == 1 and (values[0] is None or isinstance(values[0], float)):
            raise TypeError(f"{cls.__name__}.{name} takes {wanted.__name__}, not {type(values[0]).__name__}")
        return setter(self, *values)
    setattr(cls, name, strict)


def _is_static(cls: type, name: str) -> bool:
    return type(_own(cls, name)).__name__ in ("builtin_function_or_method", "staticmethod")


def _property(cls: type, name: str, getter, writable: bool) -> property:
    capital = name[0].upper() + name[1:]
    if not callable(getter):
        getter = _own(cls, "is" + capital)
    if not callable(getter):
        def getter(self):
            return QtCore.QObject.property(self, name)
    has_setter = callable(_own(cls, "set" + capital))

    def write(self, value):
        if not writable:
            raise AttributeError(f"{type(self).__name__}.{name} can only be read")
        if has_setter:
            getattr(self, "set" + capital)(value)
        elif not self.setProperty(name, value):
            raise TypeError(f"{type(self).__name__}.{name} does not take a {type(value).__name__}")
    return property(lambda self: getter(self), write)


def _refuse_keywords(cls: type) -> None:
    """PythonQt's constructors know no keyword arguments."""
    original = cls.__init__

    def __init__(self, *arguments, **keywords):
        if keywords:
            raise ValueError(f"{cls.__name__}: PythonQt takes no keyword arguments ({', '.join(keywords)})")
        original(self, *arguments)
    try:
        cls.__init__ = __init__
    except TypeError:
        pass                                   # a type without a constructor


def _make_strict(cls: type) -> None:
    """An attribute that does not exist cannot be set on a native object (a Python subclass of the user's may)."""
    original = shiboken6.Object.__setattr__        # what the classes had themselves cannot be called from here

    def __setattr__(self, name, value):
        native = type(self) in _dressed or NATIVE in type(self).__dict__
        # PySide keeps the signals of an object as attributes of it
        if native and not name.startswith("_") and not isinstance(value, QtCore.SignalInstance):
            found = _own(type(self), name)
            if isinstance(found, QtCore.Property) and found.fset is not None:      # of the stand-in's own widgets
                found.fset(self, value)
                return
            if not hasattr(type(found), "__set__"):
                raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}' that can be set")
        original(self, name, value)
    try:
        cls.__setattr__ = __setattr__
    except TypeError:
        pass


class _Receiver(QtCore.QObject):
    """Stands for the object with which PythonQt receives signals."""


def _children(original):
    def children(self):
        """A tuple that also holds PythonQt's own receiver object; that has none itself, or walks would not end."""
        return original(self) if isinstance(self, _Receiver) else (*original(self), _Receiver())
    return children


# signals and slots
def _attribute(self, name):
    if name == "connect":
        return lambda *arguments: _connect(self, *arguments)
    if name == "disconnect":
        return lambda *arguments: _disconnect(self, *arguments)
    return _original_attribute(self, name)


def _signature(sender, text: str) -> tuple[str, object | None]:
    """Qt's own spelling of a signal, and the stand-in's signal behind it if the class is one of ours."""
    wanted = QtCore.QMetaObject.normalizedSignature(text)
    wanted = bytes(wanted.data()).decode() if hasattr(wanted, "data") else wanted
    behind = next((c.__dict__["SIGNALS"][wanted] for c in type(sender).__mro__
                   if wanted in c.__dict__.get("SIGNALS", {})), None)
    if behind is None and sender.metaObject().indexOfSignal(wanted) < 0:
        raise NoSuchSignal(f"{type(sender).__name__} has no signal {text}")
    return wanted, None if behind is None else getattr(sender, behind)


def _connect(sender, *arguments) -> bool:
    if len(arguments) != 2 or not isinstance(arguments[0], str) or not callable(arguments[1]):
        raise TypeError('connect("signal(types)", function) is what the stand-in knows')
    text, slot = arguments
    wanted, signal = _signature(sender, text)
    relay = _relay(slot)
    if signal is None:
        made = QtCore.QObject.connect(sender, QtCore.SIGNAL(wanted), relay)
    else:
        made = signal.connect(relay)
    pointer = shiboken6.getCppPointer(sender)[0]
    if pointer not in _connections:
        _connections[pointer] = {}
        sender.destroyed.connect(lambda *_: _connections.pop(pointer, None))
    # held as long as the sender lives, with what the slot belongs to: so does PythonQt
    _connections[pointer].setdefault((wanted, slot), []).append(relay)
    return bool(made)


def _disconnect(sender, *arguments) -> bool:
    if len(arguments) != 2:
        raise TypeError('disconnect("signal(types)", function) is what the stand-in knows')
    wanted, signal = _signature(sender, arguments[0])
    held = _connections.get(shiboken6.getCppPointer(sender)[0], {})
    relays = held.pop((wanted, arguments[1]), [])
    for relay in relays:
        if signal is None:
            QtCore.QObject.disconnect(sender, QtCore.SIGNAL(wanted), relay)
        else:
            signal.disconnect(relay)
    return bool(relays)


def connection_count(sender) -> int:
    """How many slots hang on an object, for tests of leaks."""
    return sum(len(r) for r in _connections.get(shiboken6.getCppPointer(sender)[0], {}).values())


def _relay(slot):
    """Calls `slot` with as many arguments as it takes; an exception is recorded, not passed into C++."""
    try:
        kinds = [p.kind for p in inspect.signature(slot).parameters.values()]
        room = None if inspect.Parameter.VAR_POSITIONAL in kinds else sum(
            kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD) for kind in kinds)
    except (TypeError, ValueError):
        room = None                            # a method of C++: let Qt see to it

    def relay(*arguments):
        try:
            slot(*arguments[:room])
        except BaseException as error:         # noqa: BLE001 - record() lets KeyboardInterrupt through
            failures.record(error)
    return relay
