# SPDX-License-Identifier: MIT
"""The screen of `nfq-guard top`: draws lines with curses and passes keys to the view."""

import curses
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, final

from nfq_guard.cli.terminal import wants_colour
from nfq_guard.cli.top_flow import key_of
from nfq_guard.cli.top_view import View
from nfq_guard.telemetry.palette import Style

_ESCAPE: Final = 27
_ENTER: Final = (10, 13, curses.KEY_ENTER)
_BACKSPACE: Final = (8, 127, curses.KEY_BACKSPACE)
_PATTERN_MAX: Final = 60
# How long Escape waits for the rest of an arrow key's sequence.
_ESCAPE_MS: Final = 25

_COLOURS: Final = {
    Style.RED: curses.COLOR_RED,
    Style.GREEN: curses.COLOR_GREEN,
    Style.YELLOW: curses.COLOR_YELLOW,
    Style.BLUE: curses.COLOR_BLUE,
    Style.MAGENTA: curses.COLOR_MAGENTA,
    Style.CYAN: curses.COLOR_CYAN,
}


@final
class Screen:
    """Shows a view until the user quits."""

    def __init__(self, view: View, refresh: Callable[[], None], interval_s: float) -> None:
        """Show `view`, and call `refresh` to update it every `interval_s` seconds."""
        self._view = view
        self._refresh = refresh
        self._interval_s = interval_s
        self._attributes: dict[Style, int] = {}

    def run(self) -> None:
        """Run until q.

        Raises:
            curses.error: This terminal cannot do it.
            KeyboardInterrupt: Ctrl-C was pressed; the screen is restored.
        """
        curses.set_escdelay(_ESCAPE_MS)
        curses.wrapper(self._run)

    def _run(self, window: curses.window) -> None:
        with suppress(curses.error):  # a terminal that cannot hide its cursor
            curses.curs_set(0)
        self._attributes = _attributes()
        due = 0.0
        while True:
            now = time.monotonic()
            if now >= due:
                if not self._view.choice.paused:
                    self._refresh()
                due = time.monotonic() + self._interval_s
            self._draw(window)
            window.timeout(max(1, int(1000 * (due - time.monotonic()))))
            key = window.getch()
            if key != -1 and not self._pressed(key):
                return

    def _draw(self, window: curses.window) -> None:
        height, width = window.getmaxyx()
        window.erase()
        for row, line in enumerate(self._view.lines(height, width)):
            column = 0
            for text, styles in line:
                attribute = 0
                for style in styles:
                    attribute |= self._attributes.get(style, 0)
                # Writing the last cell moves the cursor out of the screen, which curses calls an
                # error.
                with suppress(curses.error):
                    window.addnstr(row, column, text, max(0, width - column), attribute)
                column += len(text)
        window.refresh()

    def _pressed(self, key: int) -> bool:
        """Handle a key. Returns False to quit."""
        choice = self._view.choice
        if choice.typing:
            self._typed(key)
        elif key == ord("q"):
            return False
        elif key == ord("?"):
            choice.helping = not choice.helping
        elif choice.helping:
            choice.helping = key != _ESCAPE
        elif key in {ord("p"), ord(" ")}:
            choice.paused = not choice.paused
        elif key == ord("s"):
            choice.sort = choice.sort.next
        elif key == ord("/"):
            choice.typing = True
        elif key in {curses.KEY_UP, ord("k")}:
            choice.selected -= 1
        elif key in {curses.KEY_DOWN, ord("j")}:
            choice.selected += 1
        elif key in _ENTER:
            self._open_or_back()
        elif key == _ESCAPE:
            choice.opened = None
        return True

    def _typed(self, key: int) -> None:
        choice = self._view.choice
        if key in _ENTER:
            choice.typing = False
        elif key == _ESCAPE:
            choice.typing = False
            choice.pattern = ""
        elif key in _BACKSPACE:
            choice.pattern = choice.pattern[:-1]
        elif 32 <= key < 127 and len(choice.pattern) < _PATTERN_MAX:
            choice.pattern += chr(key)

    def _open_or_back(self) -> None:
        choice = self._view.choice
        if choice.opened is not None:
            choice.opened = None
            return
        flows = self._view.flows()
        if flows:
            choice.opened = key_of(flows[max(0, min(choice.selected, len(flows) - 1))])


def _attributes() -> dict[Style, int]:
    """The curses attribute of each style; none for colours if `wants_colour` is false."""
    found = {Style.BOLD: curses.A_BOLD, Style.DIM: curses.A_DIM}
    if wants_colour() and curses.has_colors():
        curses.use_default_colors()
        for number, (style, colour) in enumerate(_COLOURS.items(), 1):
            curses.init_pair(number, colour, -1)
            found[style] = curses.color_pair(number)
    return found
