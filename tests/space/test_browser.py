"""The demo in a real browser, at the sizes of a laptop and of a phone."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, TimeoutError, expect

import engine
import markup
from engine import GenerationRequest


pytestmark = pytest.mark.slow

SIZES = {"laptop": (1280, 720), "phone": (390, 844)}
# The timeout in milliseconds is long because the machine can be busy.
TIMEOUT = 60_000
BUTTONS = {
    "Generate": "Generate",
    "Interpolate": "Interpolate",
    "Image-to-image": "Transform",
    "Compare": "Compare",
}


def open_page(request: pytest.FixtureRequest, browser: Browser, url: str, folder: Path) -> Iterator[Page]:
    """Opens the demo. After the test, checks that the page reported no errors and did not use the network."""
    width, height = SIZES[request.param]
    scheme = "dark" if request.param == "phone" else "light"
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, accept_downloads=True
    )
    page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    expect.set_options(timeout=TIMEOUT)
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda it: errors.append(it.url) if not it.url.startswith((url, "data:", "blob:")) else None)
    page.goto(url)
    expect(images(page, "generate")).to_have_count(10)
    yield page
    page.screenshot(path=folder / f"{request.node.name}.png", full_page=True)
    context.close()
    assert errors == []


@pytest.fixture(params=SIZES)
def page(request, browser: Browser, url: str, tmp_path: Path) -> Iterator[Page]:
    """The demo of a checkpoint with 20 steps."""
    yield from open_page(request, browser, url, tmp_path)


@pytest.fixture(params=SIZES)
def live_page(request, browser: Browser, live_url: str, tmp_path: Path) -> Iterator[Page]:
    """The demo of a checkpoint with 4 steps, whose images follow every change of a setting."""
    yield from open_page(request, browser, live_url, tmp_path)


def images(page: Page, name: str) -> Locator:
    return page.locator(f"#{name}-images .gallery img")


def open_tab(page: Page, name: str) -> None:
    tab = page.get_by_role("tab", name=name, exact=True)
    entry = page.locator(".overflow-dropdown").get_by_text(name, exact=True)
    # On a phone, the last tabs move into a menu some time after the page has loaded.
    for _ in range(10):
        try:
            if tab.is_visible():
                tab.click(timeout=TIMEOUT / 10)
            else:
                if not entry.is_visible():
                    page.locator(".overflow-menu button:visible").first.click(timeout=TIMEOUT / 10)
                entry.click(timeout=TIMEOUT / 10)
            return
        except TimeoutError:
            continue
    raise AssertionError(f"There is no tab {name!r}.")


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True).locator("visible=true")


def set_number(page: Page, label: str, value: int) -> None:
    page.get_by_label(f"number input for {label}").locator("visible=true").first.fill(str(value))
    page.keyboard.press("Tab")


def fits(page: Page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_first_screen_shows_large_sharp_images(page):
    box = images(page, "generate").first.bounding_box()
    assert box is not None and box["width"] >= (150 if page.viewport_size["width"] > 1000 else 80)
    assert images(page, "generate").first.evaluate("it => getComputedStyle(it).imageRendering") == "pixelated"


def test_every_tab_has_the_same_width_and_shows_its_button(page):
    widths = set()
    for tab, text in BUTTONS.items():
        open_tab(page, tab)
        box = button(page, text).bounding_box()
        assert box is not None and box["y"] + box["height"] <= page.viewport_size["height"]
        widths.add(page.locator(".workspace:visible").bounding_box()["width"])
        assert fits(page)
    assert len(widths) == 1


def test_generate_shows_images_and_offers_downloads(page):
    before = images(page, "generate").first.get_attribute("src")
    page.get_by_label("Bag", exact=True).locator("visible=true").check()
    button(page, "Generate").click()
    expect(page.locator("#generate-strip img")).to_be_visible()
    expect(page.locator("#generate-bar")).to_contain_text("20 NFE per image")
    assert {image.get_attribute("alt") for image in images(page, "generate").all()} == {"Bag"}
    assert images(page, "generate").first.get_attribute("src") != before
    for name in ("PNG", "GIF"):
        with page.expect_download() as download:
            button(page, f"Download {name}").click()
        assert Path(download.value.path()).stat().st_size > 500
        assert download.value.suggested_filename.endswith(name.lower())
    assert fits(page)


@pytest.mark.parametrize("page", ["laptop"], indirect=True)
def test_stop_ends_the_run(page, slow_evaluations):
    button(page, "Generate").click()
    expect(page.locator("#generate-strip img")).to_be_visible()
    set_number(page, "Steps", 100)
    button(page, "Generate").click()
    bar = page.locator("#generate-bar")
    expect(bar).to_contain_text("of 100")
    # The result of the previous run is gone.
    expect(page.locator("#generate-strip img")).to_have_count(0)
    button(page, "Stop").click()
    expect(bar).to_contain_text("stopped at step")
    text = bar.inner_text()
    page.wait_for_timeout(1500)
    assert bar.inner_text() == text
    # A new run replaces the text.
    set_number(page, "Steps", 3)
    button(page, "Generate").click()
    expect(bar).to_contain_text("3 NFE per image")


@pytest.mark.parametrize("page", ["laptop"], indirect=True)
def test_only_runs_with_few_steps_follow_a_change(page, slow_evaluations):
    bag = page.get_by_label("Bag", exact=True).locator("visible=true")
    bag.check()
    page.wait_for_timeout(1000)
    assert slow_evaluations == []
    set_number(page, "Steps", 100)
    button(page, "Generate").click()
    bar = page.locator("#generate-bar")
    expect(bar).to_contain_text("of 100")
    # This run does not stop until a live run replaces it.
    bag.uncheck()
    page.wait_for_timeout(500)
    expect(bar).to_contain_text("of 100")
    set_number(page, "Steps", 2)
    expect(bar).to_contain_text("2 NFE per image")
    page.wait_for_timeout(1000)
    expect(bar).to_contain_text("2 NFE per image")
    assert len(slow_evaluations) < 100


@pytest.mark.parametrize("live_page", ["laptop"], indirect=True)
def test_images_follow_the_classes_and_the_seed(live_page, live_folder):
    live_page.get_by_label("Bag", exact=True).locator("visible=true").check()
    for image in images(live_page, "generate").all():
        expect(image).to_have_attribute("alt", "Bag")
    # Each digit changes the seed. The last run shows the images of the complete seed.
    seed = live_page.get_by_label("Seed", exact=True).locator("visible=true")
    seed.fill("")
    seed.press_sequentially("1234567")
    request = GenerationRequest(labels=("Bag",), num_inference_steps=4, seed=1234567)
    *_, step = engine.get_engine(live_folder).generate(request)
    for image, expected in zip(images(live_page, "generate").all(), step.images, strict=True):
        expect(image).to_have_attribute("src", markup.image_uri(expected))
    expect(live_page.locator("#generate-bar")).to_contain_text("4 NFE per image")
    before = images(live_page, "generate").first.get_attribute("src")
    button(live_page, "Random").click()
    expect(images(live_page, "generate").first).not_to_have_attribute("src", before)


@pytest.mark.parametrize("live_page", ["laptop"], indirect=True)
def test_images_follow_the_checkpoint(live_page):
    """`fast` also needs 4 steps, so the choice does not change the number of steps."""
    before = images(live_page, "generate").first.get_attribute("src")
    live_page.get_by_label("Checkpoint", exact=True).locator("visible=true").click()
    live_page.get_by_role("option", name="fast").click()
    expect(images(live_page, "generate").first).not_to_have_attribute("src", before)
    expect(live_page.locator("#generate-bar")).to_contain_text("4 NFE per image")


@pytest.fixture(params=SIZES)
def text_page(request, browser: Browser, text_url: str, tmp_path: Path) -> Iterator[Page]:
    """The demo of a text-conditional checkpoint with 2 steps."""
    yield from open_page(request, browser, text_url, tmp_path)


@pytest.mark.parametrize("text_page", ["laptop"], indirect=True)
def test_interpolation_follows_the_prompts(text_page):
    open_tab(text_page, "Interpolate")
    last = images(text_page, "interpolate").last
    before = last.get_attribute("src")
    text_page.get_by_label("Last prompt").fill("a dark bag")
    expect(last).not_to_have_attribute("src", before)
    expect(text_page.locator("#interpolate-bar")).to_contain_text("NFE per image")


@pytest.mark.parametrize("live_page", ["laptop"], indirect=True)
def test_base_with_20_steps_can_be_chosen(live_page):
    live_page.get_by_label("Checkpoint", exact=True).locator("visible=true").click()
    live_page.get_by_role("option", name="base").click()
    expect(live_page.get_by_label("number input for Steps").locator("visible=true")).to_have_value("20")
    set_number(live_page, "Number of images", 1)
    button(live_page, "Generate").click()
    expect(live_page.locator("#generate-bar")).to_contain_text("1 image in")
    expect(live_page.locator("#generate-bar")).to_contain_text("20 NFE per image")


def test_slider_shows_the_images_of_an_interpolation(live_page):
    open_tab(live_page, "Interpolate")
    expect(images(live_page, "interpolate")).to_have_count(24)
    shown, frames = live_page.locator("#interpolate-image img"), images(live_page, "interpolate")
    for position, index in ((0, 0), (50, 12), (100, 23)):
        set_number(live_page, "Position (%)", position)
        expect(shown).to_have_attribute("src", frames.nth(index).get_attribute("src"))
    # A change of the last seed changes the shown image, which is the last one.
    before = shown.get_attribute("src")
    live_page.get_by_label("Last seed", exact=True).fill("77")
    expect(shown).not_to_have_attribute("src", before)
    expect(live_page.locator("#interpolate-bar")).to_contain_text("24 images in")
    expect(shown).to_have_attribute("src", frames.nth(23).get_attribute("src"))
    assert fits(live_page)


@pytest.mark.parametrize("page", ["laptop"], indirect=True)
def test_random_button_changes_the_seed(page):
    seed = page.get_by_label("Seed", exact=True).locator("visible=true")
    before = seed.input_value()
    button(page, "Random").click()
    expect(seed).not_to_have_value(before)


@pytest.mark.parametrize("page", ["laptop"], indirect=True)
def test_invalid_seed_is_explained(page):
    page.get_by_label("Seed", exact=True).locator("visible=true").fill("3.7")
    page.keyboard.press("Tab")
    button(page, "Generate").click()
    expect(page.get_by_text("The seed must be a whole number").first).to_be_visible()


def test_interpolate_shows_an_animation_and_its_images(page):
    open_tab(page, "Interpolate")
    button(page, "Interpolate").click()
    expect(page.locator("#interpolate-animation img")).to_be_visible()
    expect(images(page, "interpolate")).to_have_count(12)
    # Each of 20 steps evaluates the model for both classes.
    expect(page.locator("#interpolate-bar")).to_contain_text("40 NFE per image")
    expect(page.locator("#interpolate-image img")).to_have_attribute(
        "src", images(page, "interpolate").nth(6).get_attribute("src")
    )
    assert fits(page)


def test_image_to_image_shows_all_classes_and_rejects_broken_files(page, tmp_path):
    open_tab(page, "Image-to-image")
    preview = page.locator("#preview img")
    before = preview.get_attribute("src")
    button(page, "Transform").click()
    expect(images(page, "image-to-image")).to_have_count(10)
    # 17 of 20 steps, with guidance.
    expect(page.locator("#image-to-image-bar")).to_contain_text("34 NFE per image")

    (tmp_path / "broken.png").write_bytes(b"text")
    page.locator("#upload input[type=file]").set_input_files(tmp_path / "broken.png")
    expect(page.get_by_text("Could not read the image").first).to_be_visible()
    assert preview.get_attribute("src") == before
    assert fits(page)


def test_image_to_image_only_changes_the_painted_region(page):
    open_tab(page, "Image-to-image")
    canvas = page.locator("#preview canvas")

    def paint_line() -> None:
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        assert box is not None and box["width"] == box["height"] > 200
        page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] * 0.3)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] * 0.3)
        page.mouse.up()

    def read_pixels(selector: str) -> list[int]:
        """Returns the red pixels of a canvas or of an image of 8x8 pixels."""
        script = """async element => {
            // The browser may not have decoded an image whose source has just changed.
            // A canvas has no method `decode`, so the call is optional.
            await element.decode?.();
            const canvas = document.createElement("canvas"), context = canvas.getContext("2d");
            context.drawImage(element, 0, 0);
            return Array.from(context.getImageData(0, 0, 8, 8).data).filter((_, i) => i % 4 == 0);
        }"""
        return page.locator(selector).first.evaluate(script)

    paint_line()
    mask = [value > 0 for value in read_pixels("#preview canvas")]
    # The brush has a width of one pixel.
    assert mask == [i // 8 == 2 and 1 <= i % 8 <= 6 for i in range(64)]
    button(page, "Transform").click()
    expect(page.locator("#image-to-image-bar")).to_contain_text("34 NFE per image")
    original, result = read_pixels("#preview img"), read_pixels("#image-to-image-images img")
    assert all(a == b for a, b, painted in zip(original, result, mask, strict=True) if not painted)
    assert any(a != b for a, b, painted in zip(original, result, mask, strict=True) if painted)

    # A stroke that starts on a painted pixel erases, and the button erases everything.
    paint_line()
    assert not any(read_pixels("#preview canvas"))
    paint_line()
    button(page, "Clear mask").click()
    assert not any(read_pixels("#preview canvas"))
    assert fits(page)


def test_compare_shows_both_sides(page):
    open_tab(page, "Compare")
    button(page, "Compare").click()
    for side in "AB":
        expect(page.locator(f"#compare-bar-{side}")).to_contain_text("20 NFE per image")
        expect(page.locator(f"#compare-images-{side} .gallery img")).to_have_count(10)
    assert fits(page)


def test_quality_says_that_there_are_no_metrics(page):
    open_tab(page, "Quality")
    expect(page.locator("#quality")).to_contain_text("no metrics yet")


@pytest.mark.parametrize("page", ["laptop"], indirect=True)
def test_keyboard_alone_starts_a_run(page):
    """The Tab and Enter keys alone reach the button and start a run."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('button.primary')"):
            break
    page.keyboard.press("Enter")
    expect(page.locator("#generate-strip img")).to_be_visible()


def test_every_control_has_a_name(page):
    for control in page.locator("input:visible, button:visible, [role=tab]:visible").all():
        name = control.evaluate(
            "it => it.ariaLabel || it.innerText || it.title || (it.labels && it.labels[0] && it.labels[0].innerText)"
        )
        assert name, control.evaluate("it => it.outerHTML.slice(0, 200)")
