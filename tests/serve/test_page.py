"""The web page in a real browser, against a real server with the tiny model."""

from __future__ import annotations

import json
import shutil
import time

import numpy as np
import pytest
from local_server import photo
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.common.exceptions import StaleElementReferenceException  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium or its chromedriver is not installed")
SECONDS = 60


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    folder = tmp_path_factory.mktemp("downloads")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--window-size=1200,900",
    ):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.downloads = folder
    yield driver
    driver.quit()


class Page:
    """A tab as its user sees it."""

    def __init__(self, browser, server):
        self.browser = browser
        browser.switch_to.new_window("tab")
        self.tab = browser.current_window_handle
        browser.get(server)
        self.until(lambda: self.find("#model").text == "Model: tiny")

    def find(self, selector):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def until(self, condition):
        replaced = [StaleElementReferenceException]  # while the page is drawn anew
        return WebDriverWait(self.browser, SECONDS, 0.05, replaced).until(lambda _: condition())

    def look(self):
        self.browser.switch_to.window(self.tab)
        return self

    def upload(self, path):
        self.find("#file").send_keys(str(path))
        self.until(lambda: not self.find("#busy").is_displayed())

    def type(self, text, number=0):
        field = self.all(".line input")[number]
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text)
        self.answered()

    def answered(self):
        """Waits until every sentence that says something has its score."""
        says = (
            "return [...document.querySelectorAll('.line')].every(line =>"
            " !line.querySelector('input').value.trim() || line.querySelector('.score').textContent)"
        )
        time.sleep(0.2)  # the page waits for the next key
        self.until(lambda: self.browser.execute_script(says))
        self.settled()

    def settled(self):
        """Waits until the picture no longer changes."""
        last = [None]

        def same():
            now = self.pixels()
            same, last[0] = now == last[0], now
            time.sleep(0.15)
            return same

        self.until(same)

    def pixels(self) -> str:
        return self.browser.execute_script("return document.getElementById('canvas').toDataURL()")

    def downloaded(self, name):
        path = self.browser.downloads / name
        self.until(path.exists)
        return path


@pytest.fixture
def page(browser, server):
    opened = Page(browser, server)
    browser.get_log("browser"), browser.get_log("performance")
    yield opened
    console = [entry["message"] for entry in browser.get_log("browser") if " 4" not in entry["message"]]
    assert console == [], "no script failed and nothing was blocked"
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith((server, "data:", "blob:"))] == []


@pytest.fixture
def noise(tmp_path):
    path = tmp_path / "my noise.png"
    path.write_bytes(photo(40, (300, 200)))
    return path


def test_the_mask_follows_the_typing(page, noise):
    page.upload(noise)
    bare = page.pixels()
    page.type("the dog")
    dog = page.pixels()
    page.type("the small white cat behind the man")
    cat = page.pixels()
    assert len({bare, dog, cat}) == 3
    field = page.find(".line input")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(Keys.BACKSPACE)
    page.until(lambda: page.pixels() == bare)


def test_several_sentences_threshold_and_unknown_words(page, noise):
    page.upload(noise)
    page.type("the dog")
    page.find("#add").click()
    page.type("a zebra", 1)
    dots = [dot.value_of_css_property("background-color") for dot in page.all(".dot")]
    assert len(set(dots)) == 2
    assert "zebra" in page.all(".note")[1].text
    before, scores = page.pixels(), [score.text for score in page.all(".score")]
    page.find("#threshold").send_keys(Keys.LEFT * 20)
    page.until(lambda: page.find("#sure").text == "0.30")
    page.answered()
    assert page.pixels() != before and [score.text for score in page.all(".score")] != scores
    page.all(".remove")[0].click()
    page.until(lambda: len(page.all(".line")) == 1)
    assert page.find(".line input").get_attribute("value") == "a zebra"


def test_downloads(page, noise, server, tiny_model):
    from refseg.segmenter import load

    page.upload(noise)
    page.type("the dog")
    page.find("#add").click()
    page.type("a blue cup", 1)
    page.find("#coco").click()
    path = page.downloaded("my noise-coco.json")
    page.until(lambda: path.stat().st_size > 0)
    coco = COCO(str(path))
    (image,) = coco.imgs.values()
    assert (image["file_name"], image["width"], image["height"]) == ("my noise.png", 200, 300)
    expected = load(tiny_model, device="cpu")(noise, ["the dog", "a blue cup"])
    for annotation, mine in zip(coco.anns.values(), expected, strict=True):
        assert (coco.annToMask(annotation).astype(bool) == mine.mask).all()
        assert annotation["area"] == mine.mask.sum() == coco_mask.area(annotation["segmentation"])
        left, top, right, bottom = mine.box
        assert annotation["bbox"] == [left, top, right - left, bottom - top]
        assert annotation["caption"] == mine.expression
    page.find("#png").click()
    path = page.downloaded("my noise-masks.png")
    page.until(lambda: path.stat().st_size > 1000)
    assert Image.open(path).height > 300


def test_drawn_mask_is_the_answer(page, tmp_path, tiny_model):
    """On a grey photograph the pixels that the page tints are those of the mask."""
    from refseg.segmenter import load

    path = tmp_path / "grey.png"
    Image.new("RGB", (1000, 700), "grey").save(path)
    page.upload(path)
    page.find("#threshold").send_keys(Keys.LEFT * 10)
    page.type("the red bag on the left")
    tinted = page.browser.execute_script(
        "const c = document.getElementById('canvas');"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "const bits = Array.from({length: c.width * c.height}, (_, n) => d[4 * n] - d[4 * n + 1] > 20 ? 1 : 0);"
        "return [c.width, c.height, bits.join('')]"
    )
    width, height, bits = tinted
    drawn = np.array(list(bits), dtype=np.uint8).reshape(height, width).astype(bool)
    mask = load(tiny_model, device="cpu", threshold=0.4)(path, "the red bag on the left").mask
    assert mask.any() and not mask.all()
    overlap = (drawn & mask).sum() / (drawn | mask).sum()
    assert overlap > 0.95  # the outline lies outside


@pytest.mark.parametrize("form", ["jpeg", "webp", "tiff"])
def test_a_turned_photograph_is_shown_as_the_server_reads_it(page, tmp_path, form):
    path = tmp_path / f"turned.{form}"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (300, 200), "grey").save(path, form, exif=exif)
    page.upload(path)
    page.type("the dog")
    width, height = page.browser.execute_script(
        "const c = document.getElementById('canvas'); return [c.width, c.height]"
    )
    assert (width, height) == (640, 960) and page.find("#alert").text == ""


def test_bad_files(page, noise, tmp_path):
    page.upload(noise)
    page.type("the dog")
    before = page.pixels()
    for name, content, said in (("a.png", b"no picture", "text"), ("b.png", b"", "empty"), ("c.svg", b"<svg/>", "SVG")):
        bad = tmp_path / name
        bad.write_bytes(content)
        page.upload(bad)
        page.until(lambda said=said: said in page.find("#alert").text)
        assert ";" in page.find("#alert").text
        assert page.pixels() == before, "the photograph before is still there"
    page.type("a blue cup")
    assert page.find("#alert").text == ""


def test_a_word_shows_where_it_counts(page, noise):
    page.upload(noise)
    page.type("the dog xyz")
    page.until(lambda: page.find(".words").is_displayed())
    words = page.all(".words button")
    assert [word.text for word in words] == ["the", "dog", "xyz"]
    assert ["unknown" in word.get_attribute("class") for word in words] == [False, False, True]
    masks = page.pixels()
    maps = set()
    for _ in words:
        page.browser.switch_to.active_element.send_keys(Keys.TAB)
        while not page.browser.execute_script("return document.activeElement.matches('.words button')"):
            page.browser.switch_to.active_element.send_keys(Keys.TAB)
        maps.add(page.pixels())
    assert len(maps) == 3 and masks not in maps
    page.find("#add").click()
    page.until(lambda: page.pixels() == masks)


def test_what_is_typed_is_never_markup(page, noise):
    page.upload(noise)
    page.type("<img src=x onerror=\"document.title='broken'\"> dog")
    assert "onerror" in page.find(".note").text
    assert page.browser.title == "refseg" and not page.all("#panel img")


def test_two_tabs(browser, server, page, noise, tmp_path):
    other_photo = tmp_path / "other.png"
    other_photo.write_bytes(photo(41, (200, 300)))
    other = Page(browser, server)
    page.look().upload(noise)
    other.look().upload(other_photo)
    page.look().type("the dog")
    mine = page.pixels()
    other.look().type("a blue cup")
    assert other.pixels() != mine
    assert page.look().pixels() == mine
    assert page.find(".line input").get_attribute("value") == "the dog"


def test_by_keyboard_alone(page):
    """From the top: tab to an example, take it, tab to a sentence, change it, add another, remove it."""
    active = lambda: page.browser.switch_to.active_element  # noqa: E731
    page.until(lambda: page.all("#examples button"))
    page.find("body").send_keys(Keys.TAB)
    assert active().get_attribute("id") == "choose"
    active().send_keys(Keys.TAB)
    assert active().find_elements(By.TAG_NAME, "img"), "an example"
    active().send_keys(Keys.ENTER)
    page.until(lambda: page.all(".score")[0].text)
    count = len(page.all(".line"))
    for _ in range(12):
        if active().get_attribute("aria-label") == "Sentence 1":
            break
        active().send_keys(Keys.TAB)
    active().send_keys("the dog")
    for _ in range(count):
        active().send_keys(Keys.ENTER)
    assert len(page.all(".line")) == count + 1 and active().get_attribute("aria-label") == f"Sentence {count + 1}"
    active().send_keys(Keys.TAB)
    active().send_keys(Keys.ENTER)
    assert len(page.all(".line")) == count


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_and_colours(page, noise, scheme):
    features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.upload(noise)
    page.type("the " + "verylongword" * 20)
    assert page.browser.execute_script("return document.documentElement.scrollWidth") == 360
    ground, ink = (
        page.browser.execute_script(f"return getComputedStyle(document.body).{name}")
        for name in ("backgroundColor", "color")
    )
    assert contrast(ground, ink) > 7
    assert (luminance(ground) > 0.5) == (scheme == "light")
    page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def luminance(colour):
    channels = [int(value) / 255 for value in colour.removeprefix("rgb(").rstrip(")").split(",")]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    """WCAG 2's ratio, 1 to 21."""
    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)
