# SPDX-License-Identifier: MIT
"""Generates the pictures of the documentation from a lab run: `make pictures`, as root.

Shows the page of `report`, `top` and `explain` on data of a new lab run, in light and dark. All
pictures, and the whole page at three widths, are in build/pictures.
"""

import argparse
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nfq_guard.cli import main as nfq_guard
from tests.support.browser import Browser
from tests.support.lab_story import LabStory, lab_story
from tests.support.queue import import_path

IMAGES: Final = Path(__file__).parents[2] / "docs" / "images"
# Pictures in the documentation; all are in build/pictures.
SHOWN: Final = (
    "report-1280-light.png",
    "report-390-dark.png",
    "report-flow-dark.png",
    "top-dark.png",
    "top-flow-light.png",
    "explain-light.png",
)
_WIDTHS: Final = (1280, 768, 390)
_COLUMNS: Final = 100
# The colours of a terminal: the default ones, and those of SGR 31 to 36.
_TERMINAL: Final = {
    False: ("#1a2027", "#ffffff", "#b3261e", "#1f7a45", "#8a5300", "#0b5cad", "#8e24aa", "#00707a"),
    True: ("#e7eaee", "#12161b", "#f0705c", "#5cc48a", "#e0a84a", "#7db8f0", "#d58ce8", "#5cc4cf"),
}
_SGR: Final = re.compile(r"\x1b\[([\d;]*)m")
_OTHER: Final = re.compile(r"\x1b[()][A-Z0-9]|[\x0e\x0f]")


def terminal_page(text: str, *, dark: bool) -> str:
    """A page that shows the output of a terminal, with its colours."""
    ink, paper, *colours = _TERMINAL[dark]
    style = f"background:{paper};color:{ink};font:15px/18px 'DejaVu Sans Mono',monospace"
    body = "".join(_spans(_OTHER.sub("", text), ink, paper, colours))
    return (
        '<!doctype html><meta charset="utf-8"><style>body{margin:0}'
        f"pre{{display:inline-block;margin:0;padding:12px;{style}}}</style><pre>{body}</pre>"
    )


def _spans(text: str, ink: str, paper: str, colours: list[str]) -> Iterator[str]:
    now: dict[str, str] = {}
    parts = _SGR.split(text)
    for index, part in enumerate(parts):
        if index % 2 == 0:
            front, back = now.get("color", ink), paper
            if "reverse" in now:
                front, back = back, front
            style = f"color:{front};background:{back};{now.get('weight', '')}{now.get('dim', '')}"
            yield f'<span style="{style}">{html.escape(part)}</span>' if part else ""
            continue
        for code in (int(one or 0) for one in part.split(";")):
            if code == 0:
                now.clear()
            elif code == 1:
                now["weight"] = "font-weight:bold;"
            elif code == 2:
                now["dim"] = "opacity:.7;"
            elif code == 7:
                now["reverse"] = ""
            elif 31 <= code <= 36:
                now["color"] = colours[code - 31]
            elif code == 39:
                now.pop("color", None)
            else:
                assert code in {27, 49}, code
                now.pop("reverse", None)


def top_screens(story: LabStory, place: Path, seconds: float) -> dict[str, str]:
    """The screens of `top` at 80 by 24, by name, while the story goes on: its list, and a flow."""
    tmux = ["tmux", "-S", str(place / "tmux"), "-f", "/dev/null"]
    command = story.command("top", "--socket", str(story.control_socket))
    subprocess.run([*tmux, "new-session", "-d", "-x", "80", "-y", "24", *command], check=True)
    try:
        found: dict[str, str] = {}
        for name, key, shows in (("top", "s", ":8080"), ("top-flow", "Enter", "Does it begin")):
            subprocess.run([*tmux, "send-keys", key], check=True)
            story.go_on(seconds)
            done = subprocess.run(
                [*tmux, "capture-pane", "-e", "-p"], capture_output=True, text=True, check=True
            )
            assert shows in done.stdout, done.stdout
            found[name] = done.stdout
        return found
    finally:
        subprocess.run([*tmux, "kill-server"], check=False)


def explained(capture: Path) -> str:
    """`explain` of the first packet of the capture that is INVALID and was answered by an RST."""
    run = ["--assume-nat", "dnat", "--kernel", "6.12"]
    done = _guard("replay", str(capture), *run, "--format", "json")
    frames = [json.loads(line) for line in done.splitlines()]
    frame = next(one["frame"] for one in frames if one.get("reason") == "seq-over")
    return _guard(
        "explain", capture.name, str(frame), *run, "--color", "always", cwd=capture.parent
    )


def _guard(*words: str, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "nfq_guard", *words],
        env=os.environ | {"COLUMNS": str(_COLUMNS), "PYTHONPATH": import_path()},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in {0, 1}, done.stderr
    return done.stdout


def draw(images: Path, all_of_it: Path, seconds: float) -> None:
    """Run the lab, and write its pictures."""
    with tempfile.TemporaryDirectory(prefix="nfqg-pictures-") as name:
        place = Path(name)
        with lab_story(place) as story:
            story.go_on(seconds)
            story.enforce()
            died = story.died
            screens = top_screens(story, place, seconds / 2)
            story.write_capture()
            doctor = place / "doctor.json"
            done = subprocess.run(
                story.command("doctor", "--format", "json"), capture_output=True, check=False
            )
            doctor.write_bytes(done.stdout)
        sys.stdout.write(f"reset in dry-run: {died}, in enforce: {story.died - died}\n")
        assert died
        assert story.died == died
        screens["explain"] = explained(story.capture)
        page = place / "page.html"
        words = ["--title", "a lab run", "--doctor", str(doctor)]
        assert nfq_guard(["report", str(story.events), "-o", str(page), *words]) == 0
        shutil.copy(page, all_of_it)
        with Browser() as browser:
            _draw_page(browser, page, all_of_it)
            for screen, text in screens.items():
                _draw_terminal(browser, place, all_of_it, screen, text)
        for shown in SHOWN:
            shutil.copy(all_of_it / shown, images)


def _draw_page(browser: Browser, page: Path, images: Path) -> None:
    for dark in (False, True):
        theme = "dark" if dark else "light"
        for width in _WIDTHS:
            browser.screen(width, dark=dark)
            browser.open(page)
            if width != _WIDTHS[1]:
                browser.picture(images / f"report-{width}-{theme}.png", width, 900)
            browser.run("fate.value = 'resets'; fate.dispatchEvent(new Event('change'))")
            browser.run("document.querySelector('#flows button.flow').click()")
            browser.run("new Promise(done => setTimeout(done, 300))")
            top = browser.run(
                "document.querySelector('#flows-title').getBoundingClientRect().top + scrollY"
            )
            if width == _WIDTHS[0]:
                browser.picture(images / f"report-flow-{theme}.png", width, 1100, int(top))
            height = browser.run("document.documentElement.scrollHeight")
            browser.picture(images / f"page-{width}-{theme}.png", width, height)


def _draw_terminal(browser: Browser, place: Path, images: Path, name: str, text: str) -> None:
    for dark in (False, True):
        page = place / f"{name}.html"
        page.write_text(terminal_page(text.rstrip("\n"), dark=dark), encoding="utf-8")
        browser.screen(1400, dark=dark)
        browser.open(page)
        box = browser.run(
            "(() => { const box = document.querySelector('pre').getBoundingClientRect();"
            " return [Math.ceil(box.width), Math.ceil(box.height)]; })()"
        )
        browser.picture(images / f"{name}-{'dark' if dark else 'light'}.png", *box)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the pictures of the documentation.")
    parser.add_argument("--images", type=Path, default=IMAGES, help="the folder for them")
    parser.add_argument("--seconds", type=float, default=40, help="of each mode (%(default)s)")
    options = parser.parse_args()
    everything = Path("build/pictures")
    for folder in (options.images, everything):
        folder.mkdir(parents=True, exist_ok=True)
    draw(options.images, everything, options.seconds)
