"""The report's pages and the card as a browser sees them: nothing fails, nothing is out of reach."""

from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

pytestmark = pytest.mark.browser

PAGES = ["index", "00_story", "01_broken", "02_verdicts", "03_later", "card"]
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}


@pytest.fixture
def visit(browser, site):
    """Opens a page; its `trouble` lists failed requests, errors, and requests that leave the folder."""
    contexts = []

    def open_page(name, *, viewport=DESK, scheme="light"):
        context = browser.new_context(viewport=viewport, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.trouble = []
        page.on("requestfailed", lambda request: page.trouble.append(request.url))
        page.on("request", lambda request: None if is_here(request.url, site) else page.trouble.append(request.url))
        page.on("pageerror", lambda error: page.trouble.append(str(error)))
        page.on("console", lambda said: page.trouble.append(said.text) if said.type == "error" else None)
        page.goto((site / f"{name}.html").as_uri(), wait_until="load")
        return page

    yield open_page
    for context in contexts:
        context.close()


def is_here(url, site):
    return url.startswith((site.as_uri(), "data:"))


@pytest.mark.parametrize("name", PAGES)
def test_pages_load_whole_and_quietly(visit, name):
    page = visit(name)
    assert page.trouble == []
    for image in page.locator("img").all():
        assert image.get_attribute("alt")
        assert image.evaluate("image => image.complete && image.naturalWidth > 0")
    for drawing in page.locator("svg.eedkit-figure").all():
        assert drawing.get_attribute("aria-label")
        assert drawing.evaluate("drawing => drawing.getBoundingClientRect().width") > 300
    assert page.locator("img, svg.eedkit-figure").count() >= (name in ("index", "00_story", "card"))


def test_what_fails_is_seen(visit, site):
    (site / "bad.html").write_text('<img src="nowhere.png"><script>console.error("odd")</script>')
    assert len(visit("bad").trouble) >= 2


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(visit, name):
    page = visit(name)
    for link in page.locator("a[href]").all():
        there = link.evaluate("link => link.href.split('#')[0]")
        anchor = link.evaluate("link => link.hash")
        assert Path(unquote(urlparse(there).path)).is_file(), there
        if anchor:
            assert page.locator(anchor).count() == 1


def test_pages_are_walked_by_their_links(visit):
    page = visit("index")
    page.click("article h3 a")
    page.click("a[rel=next]")
    assert page.locator("h1").inner_text() == "Broken"
    page.click("text=To the error")
    assert page.url.endswith("01_broken.html#failure")
    page.click("text=Index")
    assert page.url.endswith("/index.html")
    page.click(".opening li a")
    assert page.url.endswith("/00_story.html")


def test_what_is_folded_is_open_in_print(visit):
    page = visit("00_story")
    folded = page.get_by_text("by 0.1")
    assert not folded.is_visible()
    page.get_by_text("How far").click()
    assert folded.is_visible()
    page.get_by_text("How far").click()
    page.emulate_media(media="print")
    assert folded.is_visible()


@pytest.mark.parametrize("name", PAGES)
def test_a_phone_scrolls_in_one_direction(visit, name):
    page = visit(name, viewport=PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


@pytest.mark.parametrize(("viewport", "scheme"), [(DESK, "light"), (PHONE, "dark")], ids=["desk", "phone"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_serious(visit, name, viewport, scheme):
    from axe_playwright_python.sync_playwright import Axe

    page = visit(name, viewport=viewport, scheme=scheme)
    violations = Axe().run(page).response["violations"]
    serious = [found for found in violations if found["impact"] in ("serious", "critical")]
    assert [(found["id"], found["nodes"][0]["html"]) for found in serious] == []
