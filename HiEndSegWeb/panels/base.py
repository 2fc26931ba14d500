"""What every section of the panel is."""

from __future__ import annotations

import inspect
from typing import Any

from HiEndSegLib.errors import HiEndSegError


class Panel:
    """name: of the section and its ids. title: what stands over it. shown: a page expression, "" for always."""

    name, title, shown = "", "", ""

    def __init__(self, session: Any):
        self.session, self.state, self.server = session, session.state, session.server

    def build(self) -> None:
        """Make the widgets, inside the section."""
        raise NotImplementedError(f"{type(self).__name__} builds nothing")

    def refresh(self) -> None:
        """Called every turn; cheap where nothing changed."""

    def add_routes(self, app: Any) -> None:
        """HTTP routes of this section."""

    def set_state(self, **values: Any) -> None:
        """Page variables, sent only where they differ."""
        for name, value in values.items():
            if self.state[name] != value:
                self.state[name] = value

    def guarded(self, act: Any) -> Any:
        """`act` as an event handler: what a person can cause is said on the page."""
        def handler(*arguments: Any) -> None:
            try:
                act(*arguments)
            except HiEndSegError as error:
                self.session.page.say(str(error), error=True)

        async def slow_handler(*arguments: Any) -> None:
            try:
                await act(*arguments)
            except HiEndSegError as error:
                self.session.page.say(str(error), error=True)
            self.state.flush()

        return slow_handler if inspect.iscoroutinefunction(act) else handler
