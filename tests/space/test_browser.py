"""The demo in a real browser: Debian's chromium, at the sizes of a desk and of a phone."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, TimeoutError, expect, sync_playwright

from fmnist_diffusion.data import FASHION_MNIST_LABELS


SIZES = {"desk": (1280, 900), "phone": (390, 844)}
# Without the network, and with as few processes as can be.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# A machine that is busy with something else.
PATIENCE = 20_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        assert "FMNIST_DIFFUSION_FULL_DATA" not in os.environ, "the whole check has chromium"
        pytest.skip("chromium is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(params=SIZES)
def page(request, browser: Browser, url: str, tmp_path: Path) -> Iterator[Page]:
    """The demo's page, which must not have complained in the end."""
    width, height = SIZES[request.param]
    scheme = "dark" if request.param == "phone" else "light"
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, accept_downloads=True
    )
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request", lambda it: complaints.append(it.url) if not it.url.startswith((url, "data:", "blob:")) else None
    )
    page.goto(url)
    yield page
    page.screenshot(path=tmp_path / f"{request.node.name}.png", full_page=True)
    context.close()
    assert complaints == []


def pictures(page: Page, place: str):
    return page.locator(f"#{place} .wall img")


def open_tab(page: Page, name: str) -> None:
    expect(page.get_by_role("tab", name="Draw", exact=True)).to_be_visible()
    tab = page.get_by_role("tab", name=name, exact=True)
    entry = page.locator(".overflow-dropdown").get_by_text(name, exact=True)
    # On a phone the last tabs move into a menu, some time after the page is there.
    for _ in range(10):
        try:
            if tab.is_visible():
                tab.click(timeout=PATIENCE / 10)
            else:
                if not entry.is_visible():
                    page.locator(".overflow-menu button:visible").first.click(timeout=PATIENCE / 10)
                entry.click(timeout=PATIENCE / 10)
            return
        except TimeoutError:
            continue
    raise AssertionError(f"there is no tab {name}")


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).locator("visible=true").click()


def fits(page: Page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_first_screen(page):
    """Ten pictures are in the page before anything is asked of the model, and say what they are."""
    expect(pictures(page, "draw-wall")).to_have_count(10)
    names = [picture.get_attribute("alt") for picture in pictures(page, "draw-wall").all()]
    assert names == list(FASHION_MNIST_LABELS)
    box = pictures(page, "draw-wall").first.bounding_box()
    assert box is not None and box["width"] >= 50
    assert pictures(page, "draw-wall").first.evaluate("it => getComputedStyle(it).imageRendering") == "pixelated"
    assert fits(page)


def test_draw(page):
    before = pictures(page, "draw-wall").first.get_attribute("src")
    page.get_by_label("Bag", exact=True).locator("visible=true").check()
    press(page, "Draw")
    expect(page.locator("#draw-strip img")).to_be_visible()
    expect(page.locator("#draw-bar")).to_contain_text("20 network evaluations a picture")
    assert {picture.get_attribute("alt") for picture in pictures(page, "draw-wall").all()} == {"Bag"}
    assert pictures(page, "draw-wall").first.get_attribute("src") != before
    for name, suffix in (("PNG", "png"), ("GIF", "gif")):
        with page.expect_download() as download:
            page.get_by_role("button", name=name, exact=True).locator("visible=true").click()
        assert Path(download.value.path()).stat().st_size > 500
        assert download.value.suggested_filename.endswith(suffix)
    assert fits(page)


def test_pictures_form_step_by_step_and_can_be_stopped(page):
    page.get_by_label("number input for Steps").locator("visible=true").first.fill("100")
    page.get_by_label("number input for Pictures").locator("visible=true").first.fill("40")
    page.keyboard.press("Tab")
    press(page, "Draw")
    expect(page.locator("#draw-bar")).to_contain_text("of 100")
    press(page, "Stop")
    page.wait_for_timeout(500)
    text = page.locator("#draw-bar").inner_text()
    page.wait_for_timeout(1500)
    assert page.locator("#draw-bar").inner_text() == text
    assert text.startswith("step ")


def test_roll_changes_the_seed(page):
    seed = page.get_by_label("Seed", exact=True).locator("visible=true")
    before = seed.input_value()
    press(page, "Roll")
    expect(seed).not_to_have_value(before)


def test_morph(page):
    open_tab(page, "Morph")
    press(page, "Morph")
    expect(page.locator("#morph-film img")).to_be_visible()
    expect(pictures(page, "morph-wall")).to_have_count(12)
    # Both classes at each of 20 steps.
    expect(page.locator("#morph-bar")).to_contain_text("40 network evaluations")
    assert fits(page)


def test_repaint(page, tmp_path):
    open_tab(page, "Repaint")
    expect(pictures(page, "preview")).to_have_count(1)
    before = pictures(page, "preview").get_attribute("src")
    press(page, "Repaint")
    expect(pictures(page, "repaint-wall")).to_have_count(10)
    expect(page.locator("#repaint-bar")).to_contain_text("12 network evaluations")

    # Of their own.
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page.locator("#upload input[type=file]").set_input_files(tmp_path / "broken.png")
    expect(page.get_by_text("no picture that can be read").first).to_be_visible()
    assert pictures(page, "preview").get_attribute("src") == before
    assert fits(page)


def test_compare(page):
    open_tab(page, "Compare")
    press(page, "Compare")
    for side, evaluations in (("A", 30), ("B", 8)):
        expect(page.locator(f"#compare-bar-{side}")).to_contain_text(f"{evaluations} network evaluations a picture")
        expect(pictures(page, f"compare-{side}")).to_have_count(10)
    assert fits(page)


def test_quality(page):
    open_tab(page, "Quality")
    expect(page.locator("#quality")).to_contain_text("has not been measured")


def test_with_the_keyboard_alone(page):
    """From the top of the page to the button and a drawing, by Tab and Enter."""
    expect(pictures(page, "draw-wall")).to_have_count(10)
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.innerText") == "Draw" and page.evaluate(
            "document.activeElement.tagName + document.activeElement.getAttribute('role')"
        ).startswith("BUTTONnull"):
            break
    page.keyboard.press("Enter")
    expect(page.locator("#draw-strip img")).to_be_visible()


def test_every_control_has_a_name(page):
    for control in page.locator("input:visible, button:visible, [role=tab]:visible").all():
        name = control.evaluate(
            "it => it.ariaLabel || it.innerText || it.title || (it.labels && it.labels[0] && it.labels[0].innerText)"
        )
        assert name, control.evaluate("it => it.outerHTML.slice(0, 200)")
