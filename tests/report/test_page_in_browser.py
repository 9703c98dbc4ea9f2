# SPDX-License-Identifier: MIT
"""The page in a real browser."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfq_guard.report.page import write_page
from nfq_guard.report.summary import Summary, add_event
from nfq_guard.telemetry.reader import EventReader
from tests.support.browser import Browser
from tests.support.events import event, window
from tests.support.story import stamp, story, write

pytestmark = pytest.mark.xdist_group("browser")
_WIDTHS = (390, 768, 1280)
NASTY = "<img src=x onerror=document.title='taken'></script><script>document.title='taken'</script>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("page"), story())


@pytest.fixture
def shown(browser: Browser, page: Path) -> Browser:
    browser.screen(1280)
    browser.open(page)
    return browser


def rows(browser: Browser) -> list[str]:
    found: list[str] = browser.run(
        "[...document.querySelectorAll('#flows tbody tr:not(.open) td:first-child')]"
        ".map(cell => cell.textContent)"
    )
    return found


def test_nothing_is_loaded_and_nothing_complains(shown: Browser, page: Path) -> None:
    assert shown.requests() == [page.as_uri()]
    assert shown.complaints() == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", _WIDTHS)
def test_the_answer_is_on_the_first_screen(
    browser: Browser, page: Path, width: int, dark: bool
) -> None:
    browser.screen(width, dark=dark)
    browser.open(page)
    bottom = browser.run(
        "Math.max(...[...document.querySelectorAll('.verdict, .answers > div')]"
        ".map(each => each.getBoundingClientRect().bottom))"
    )
    assert bottom <= 900
    text = browser.run("document.querySelector('.answers').textContent")
    for words in ("Since when?", "10.244.0.2:80", "seq-over", "default"):
        assert words in text


@pytest.mark.parametrize("width", [320, *_WIDTHS])
def test_it_fits_and_is_legible(browser: Browser, page: Path, width: int) -> None:
    """No sideways scrolling, no text below 12 px, also with a flow open."""
    browser.screen(width)
    browser.open(page)
    browser.run("document.querySelector('#flows button.flow').click()")
    assert browser.run("document.documentElement.scrollWidth") <= width
    smallest = browser.run(
        """(() => {
            let least = 99;
            const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
            for (let node; (node = walk.nextNode());) {
                const parent = node.parentElement;
                if (!node.data.trim() || !parent.getClientRects().length) continue;
                if (parent.closest("script, title")) continue;
                let size = parseFloat(getComputedStyle(parent).fontSize);
                const picture = parent.closest("svg");
                if (picture) size *= picture.getScreenCTM().a;
                least = Math.min(least, size);
            }
            return least;
        })()"""
    )
    assert smallest >= 12


def test_a_narrow_table_has_its_labels(browser: Browser, page: Path) -> None:
    """Also that of the events of an open flow, which is in a table itself."""
    browser.screen(390)
    browser.open(page)
    browser.run("document.querySelector('#flows button.flow').click()")
    for place in ("#flows td[data-label=service]", ".detail td[data-label=seq]"):
        found = browser.run(
            f"getComputedStyle(document.querySelector('{place}'), '::before').content"
        )
        assert found == f'"{place.split("=")[1][:-1]}"'


@pytest.mark.parametrize("dark", [False, True])
def test_texts_stand_out(browser: Browser, page: Path, dark: bool) -> None:
    """The contrast of each text with what is behind it, as WCAG AA asks for: 4.5."""
    browser.screen(1280, dark=dark)
    browser.open(page)
    browser.run("document.querySelector('#flows button.flow').click()")
    least = browser.run(
        """(() => {
            const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
            const light = (text) => numbers(text).slice(0, 3).map((part) => part / 255)
                .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
                .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
            let least = 99;
            for (const each of document.querySelectorAll(
                "p, td, th, dd, dt, h1, h2, b, span, a, button, strong")) {
                if (!each.textContent.trim() || !each.getClientRects().length) continue;
                let behind = each;
                while (behind && numbers(getComputedStyle(behind).backgroundColor)[3] === 0) {
                    behind = behind.parentElement;
                }
                if (!behind) continue;
                const [a, b] = [light(getComputedStyle(each).color),
                    light(getComputedStyle(behind).backgroundColor)].sort((x, y) => y - x);
                least = Math.min(least, (a + 0.05) / (b + 0.05));
            }
            return least;
        })()"""
    )
    assert least >= 4.5


def test_sorting(shown: Browser) -> None:
    shown.run("document.querySelector('[data-key=furthest] button').click()")
    first = shown.run(
        "[...document.querySelectorAll('#flows [data-label=\"furthest off\"]')]"
        ".map(cell => Number(cell.textContent.replaceAll(',', '')))"
    )
    assert first == sorted(first, reverse=True)
    sort = "document.querySelector('[data-key=furthest]').getAttribute('aria-sort')"
    assert shown.run(sort) == "descending"
    shown.run("document.querySelector('[data-key=furthest] button').click()")
    assert shown.run(sort) == "ascending"


def test_filtering(shown: Browser) -> None:
    total = len(rows(shown))
    shown.press("/")
    for letter in ":8082 no-entry":
        shown.press(letter)
    found = rows(shown)
    assert 0 < len(found) < total
    assert all(":8082" in row for row in found)
    shown.press("Escape")
    assert len(rows(shown)) == total
    shown.run("reason.value = 'bad-checksum'; reason.dispatchEvent(new Event('change'))")
    assert rows(shown) == ["10.244.0.2:8080 \u2194 192.0.2.2:40000 tcp"]
    shown.run("reason.value = 'no-entry'; reason.dispatchEvent(new Event('change'))")
    shown.run("fate.value = '2'; fate.dispatchEvent(new Event('change'))")
    assert 0 < len(rows(shown)) < total
    shown.run("pattern.value = 'no such flow'; pattern.dispatchEvent(new Event('input'))")
    assert rows(shown) == []


def test_the_link_of_a_service_shows_its_flows(shown: Browser) -> None:
    shown.run("document.querySelector('[data-find=\"10.244.0.2:8081\"]').click()")
    assert all("10.244.0.2:8081" in row for row in rows(shown))


def test_the_keyboard_opens_and_closes_a_flow(shown: Browser) -> None:
    shown.run("document.querySelector('#flows button.flow').focus()")
    shown.press("Enter")
    assert shown.run("document.querySelectorAll('tr.open').length") == 1
    assert shown.run("document.activeElement.getAttribute('aria-expanded')") == "true"
    lines = shown.run("[...document.querySelectorAll('.line')].map(line => line.textContent)")
    assert len(lines) == 4
    assert "Does it begin where the receiver has offered room? no, by" in lines[0]
    assert shown.run("document.querySelectorAll('.line.broken').length") == 1
    shown.press("Escape")
    assert shown.run("document.querySelectorAll('tr.open').length") == 0


def test_the_number_line_has_its_marks_in_order(shown: Browser) -> None:
    shown.run("document.querySelector('#flows button.flow').click()")
    places = shown.run(
        """['other', 'limit', 'actual'].map(name =>
            Number(document.querySelector('.line.broken .' + name).getAttribute('x1')))"""
    )
    assert places == sorted(places)
    assert all(0 < place < 100 for place in places)


def test_the_ladder_links_a_reset_to_its_packet(shown: Browser) -> None:
    shown.run("fate.value = 'resets'; fate.dispatchEvent(new Event('change'))")
    shown.run("document.querySelector('#flows button.flow').click()")
    shown.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    text = shown.run("document.querySelector('.ladder').textContent")
    assert "reset it caused" in text
    events = shown.run("document.querySelector('.detail table').textContent")
    assert "answers seq-over of " in events


def test_there_is_no_button_for_what_there_is_not(shown: Browser) -> None:
    buttons = (
        "[...document.querySelectorAll('.more')].filter(b => b.getClientRects().length).length"
    )
    assert shown.run(buttons) == 1, "there are more flows than 20"
    shown.run("reason.value = 'bad-checksum'; reason.dispatchEvent(new Event('change'))")
    shown.run("document.querySelector('#flows button.flow').click()")
    assert shown.run("document.querySelectorAll('tr.open').length") == 1
    assert shown.run(buttons) == 0


def test_it_prints(shown: Browser) -> None:
    pdf = shown.printed()
    assert pdf.startswith(b"%PDF")
    assert 1 <= pdf.count(b"/Type /Page\n") < 8


def test_it_says_all_without_a_script(browser: Browser, page: Path) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.screen(1280)
        browser.open(page)
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
    assert len(rows(browser)) == 20
    assert browser.run("document.getElementById('tools').hidden") is True


def test_hostile_texts_stay_texts(browser: Browser, tmp_path: Path) -> None:
    doctor = tmp_path / "doctor"
    doctor.write_text(
        json.dumps({"id": NASTY, "status": "problem", "what": NASTY, "todo": NASTY}),
        encoding="utf-8",
    )
    nasty = {"rule": NASTY, "in": NASTY, "out": NASTY}
    page = write(
        tmp_path,
        iter([event(**nasty, window=window()), event(**nasty, reason="no-entry", breach=None)]),
        "--title",
        NASTY,
        "--doctor",
        str(doctor),
    )
    browser.screen(1280)
    browser.open(page)
    browser.run("document.querySelector('#flows button.flow').click()")
    assert browser.run("document.title") == f"{NASTY}: INVALID packets"
    assert browser.run("document.querySelectorAll('img').length") == 0
    assert browser.run("document.scripts.length") == 2
    assert NASTY in browser.run("document.querySelector('.detail').textContent")
    assert browser.complaints() == []


def test_what_the_policy_of_the_page_is_for(browser: Browser, page: Path, tmp_path: Path) -> None:
    """Injected markup would not run."""
    taken = tmp_path / "taken.html"
    text = page.read_text(encoding="utf-8")
    taken.write_text(text.replace("<h1>", f"{NASTY}<h1>"), encoding="utf-8")
    browser.open(taken)
    assert browser.run("document.title") == "events.jsonl: INVALID packets"
    assert any("Content Security Policy" in text for text in browser.complaints())


@pytest.mark.no_cover  # many events, all alike
def test_a_hundred_thousand_events(browser: Browser, tmp_path: Path) -> None:
    """All of them are in the page, and it opens."""
    one = json.dumps(event(timestamp="WHEN", dport=65535)).encode()
    lines = (
        one.replace(b"WHEN", stamp(number / 10).encode()).replace(
            b"65535", b"%d" % (1 + number % 1000)
        )
        for number in range(100_000)
    )
    summary = Summary()
    for read in EventReader().read(io.BytesIO(b"\n".join(lines))):
        add_event(summary, read)
    page = tmp_path / "page.html"
    write_page(page, summary, title="many")
    browser.screen(1280)
    browser.open(page)
    assert "1,000 flows" in browser.run("document.getElementById('told').textContent")
    timing = "performance.getEntriesByType('navigation')[0]"
    assert browser.run(f"{timing}.loadEventEnd - {timing}.startTime") < 20_000
    assert (
        browser.run(
            "JSON.parse(document.getElementById('flow-data').textContent).flows"
            ".reduce((sum, flow) => sum + flow[14].length, 0)"
        )
        == 100_000
    )
