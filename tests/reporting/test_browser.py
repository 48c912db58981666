"""The HTML report in headless Chromium: what is drawn, what moves, what needs no script."""

from __future__ import annotations

import copy
import re

import pytest
from pages import browser, training_report

from tinyc.reporting import page

playwright = pytest.importorskip("playwright.sync_api", reason="browser: playwright is missing")
CHROMIUM = browser()
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="browser: no Chromium was found (apt-get install chromium)"
)


@pytest.fixture(scope="module")
def report():
    return training_report()


@pytest.fixture(scope="module")
def kernels(report):
    return report["programs"][0]["kernels"]


@pytest.fixture(scope="module")
def address(report, tmp_path_factory):
    path = tmp_path_factory.mktemp("pages") / "report.html"
    page.write(report, path)
    return path.as_uri()


@pytest.fixture(scope="module")
def chromium():
    # without a sandbox, since tests may run as root in a container
    options = {"executable_path": CHROMIUM, "args": ["--no-sandbox"]}
    with playwright.sync_playwright() as driver, driver.chromium.launch(**options) as found:
        yield found


@pytest.fixture
def opened(chromium, address):
    """The page, with nothing said on the console when the test ends."""
    yield from open_page(chromium, address)


def open_page(chromium, address, **options):
    said: list[str] = []
    options = {"viewport": {"width": 1500, "height": 1000}, **options}
    with chromium.new_context(**options) as context:
        tab = context.new_page()
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        tab.on("request", lambda r: None if r.url.startswith("file:") else said.append(r.url))
        tab.goto(address)
        if options.get("java_script_enabled", True):
            tab.wait_for_selector("html[data-ready]")
        yield tab
        assert said == []


SHOWS = "name => document.querySelector('.pane.source .body').textContent.includes(name)"


def marked(tab, selector, name="pinned"):
    """Return how many elements of a kind are highlighted."""
    return tab.locator(f"{selector}.{name}").count()


def box(tab, kernel):
    return tab.locator(f"svg.graph:not(.unfused) .box[data-k='{kernel['index']}']")


class TestDrawn:
    @pytest.mark.parametrize("width", [1500, 900, 500])
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_every_kernel_has_a_box_that_can_be_seen(self, chromium, address, kernels, width,
                                                     scheme):  # fmt: skip
        options = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
        for tab in open_page(chromium, address, **options):
            boxes = tab.locator("svg.graph .box .card")
            assert boxes.count() == len(kernels)
            sizes = [boxes.nth(i).bounding_box() for i in range(boxes.count())]
            assert all(size["width"] > 40 and size["height"] > 8 for size in sizes)
            assert len(tab.screenshot()) > 20_000
            # nothing sticks out to the right
            assert tab.evaluate("document.documentElement.scrollWidth") <= width

    def test_text_stands_out_from_its_ground(self, chromium, address):
        for scheme in ("light", "dark"):
            for tab in open_page(chromium, address, color_scheme=scheme):
                colours = tab.evaluate("""() => {
                    const style = getComputedStyle(document.body);
                    const small = getComputedStyle(document.querySelector(".lead"));
                    return [style.backgroundColor, style.color, small.color];
                }""")
                ground, text, soft = map(luminance, colours)
                assert contrast(ground, text) > 7 and contrast(ground, soft) > 4.5

    def test_the_theme_can_be_switched(self, opened):
        before = opened.evaluate("getComputedStyle(document.body).backgroundColor")
        opened.click("#theme")
        after = opened.evaluate("getComputedStyle(document.body).backgroundColor")
        assert luminance(before) > 0.8 > 0.1 > luminance(after)


def luminance(colour):
    parts = [int(x) / 255 for x in re.findall(r"\d+", colour)[:3]]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return sum(w * x for w, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


class TestLinks:
    def test_a_click_on_a_box_selects_its_kernel_in_all_panes(self, opened, kernels):
        kernel = max(kernels, key=lambda k: len(k["members"]))
        box(opened, kernel).click()
        assert marked(opened, ".graph .box") == 1
        assert marked(opened, ".kernels tbody tr") == 1
        assert marked(opened, "ol.code li") == len({tuple(x) for x in kernel["lines"]})
        # all of the code is the kernel's, so no line of it stands out
        assert marked(opened, ".pane .body > div") == 0
        assert kernel["name"] in opened.inner_text(".pane.source")
        assert kernel["name"] in opened.inner_text(".chosen")
        assert opened.url.endswith(f"#p0-k{kernel['index']}")

    def test_a_click_stays_while_the_pointer_goes_elsewhere(self, opened, kernels):
        box(opened, kernels[0]).click()
        box(opened, kernels[1]).hover()
        opened.wait_for_selector(f".graph .box.hot[data-k='{kernels[1]['index']}']")
        opened.wait_for_function(SHOWS, arg=kernels[1]["name"])
        assert opened.locator(".graph .box.pinned").get_attribute("data-k") == "0"
        opened.mouse.move(2, 2)
        opened.wait_for_function("!document.querySelector('.graph .box.hot')")
        opened.wait_for_function(SHOWS, arg=kernels[0]["name"])

    def test_hover_on_a_line_highlights_its_kernels(self, opened, kernels):
        path, number = kernels[0]["lines"][0]
        opened.locator(f"li[data-line='{path}:{number}']").hover()
        wanted = sum([path, number] in k["lines"] for k in kernels)
        opened.wait_for_function("""wanted => [".graph .box", ".kernels tbody tr"].every(
            kind => document.querySelectorAll(kind + ".hot").length === wanted)""", arg=wanted)

    def test_hover_on_code_highlights_one_member(self, opened, kernels):
        kernel = max(kernels, key=lambda k: len(k["members"]))
        box(opened, kernel).click()
        row = opened.locator(".pane.source [data-member]").first
        member = row.get_attribute("data-member")
        row.hover()
        opened.wait_for_function("""member => {
            const hot = [...document.querySelectorAll(".pane.source .hot, .pane.loops .hot")];
            return hot.length && hot.every(row => row.dataset.member === member)
                && document.querySelectorAll("ol.code li.hot").length <= 1;
        }""", arg=member)

    def test_a_click_on_code_selects_one_member(self, opened, kernels):
        kernel = max(kernels, key=lambda k: len(k["members"]))
        box(opened, kernel).click()
        row = opened.locator(".pane.source [data-member]").first
        row.click()
        pinned = f".pinned[data-member='{row.get_attribute('data-member')}']"
        for pane in ("source", "loops"):
            assert opened.locator(f".pane.{pane} {pinned}").count() > 0
            assert marked(opened, f".pane.{pane} .body > div") == (
                opened.locator(f".pane.{pane} {pinned}").count()
            )
        assert marked(opened, ".graph .box") == 1

    def test_a_click_on_a_wire_leads_to_why_it_is_there(self, opened, report):
        link = report["programs"][0]["links"][0]
        wire = f".wire[data-from='{link['from']}'][data-to='{link['to']}']"
        opened.locator(f"{wire} .hit").dispatch_event("click")
        entry = opened.locator("#p0-l0")
        assert entry.evaluate("e => e === document.activeElement")
        assert entry.evaluate("e => e.getBoundingClientRect().top") < 1000
        assert marked(opened, ".graph .wire") == 1

    def test_an_address_selects(self, chromium, address):
        for tab in open_page(chromium, address + "#p0-k1"):
            assert tab.locator(".graph .box.pinned").get_attribute("data-k") == "1"


class TestGraph:
    def test_opens_a_box_to_its_members_and_closes_it_again(self, opened, kernels):
        kernel = max(kernels, key=lambda k: len(k["members"]))
        box(opened, kernel).click()
        paths = "[...document.querySelectorAll('.wire .line')].map(p => p.getAttribute('d'))"
        drawn = opened.evaluate(paths)
        opened.click("[data-do=expand]")
        assert opened.locator(".graph .inside").count() == len(kernel["members"])
        assert opened.evaluate(paths) != drawn
        opened.click("[data-do=expand]")
        assert opened.locator(".graph .inside").count() == 0
        # the script draws what graph.py draws
        for before, after in zip(drawn, opened.evaluate(paths), strict=True):
            assert before[0] == after[0] and numbers(before) == pytest.approx(numbers(after))

    def test_shows_every_operation_before_fusion(self, opened, report):
        opened.check("[data-do=unfused]")
        program = report["programs"][0]
        operations = page.graph.operations(program)["homes"]
        assert opened.locator(".unfused .box").count() == len(operations)
        assert opened.locator(".unfused .outline").count() == len(program["kernels"])
        assert not opened.locator("svg.graph:not(.unfused)").is_visible()
        opened.locator(".unfused .box").first.click()
        assert marked(opened, ".unfused .box") >= 1
        opened.uncheck("[data-do=unfused]")
        assert opened.locator("svg.graph:not(.unfused)").is_visible()

    def test_zooms(self, opened):
        width = "document.querySelector('svg.graph').getBoundingClientRect().width"
        before = opened.evaluate(width)
        opened.click("[data-do=in]")
        assert opened.evaluate(width) == pytest.approx(before * 1.25, rel=0.01)
        opened.click("[data-do=fit]")
        assert opened.evaluate(width) == pytest.approx(before, rel=0.01)


def numbers(path):
    return [float(x) for x in re.findall(r"-?[\d.]+", path)]


class TestKeyboard:
    def test_j_and_k_go_from_kernel_to_kernel_and_escape_lets_go(self, opened):
        opened.keyboard.press("j")
        first = opened.locator(".graph .box.pinned").get_attribute("data-k")
        opened.keyboard.press("j")
        opened.keyboard.press("k")
        assert opened.locator(".graph .box.pinned").get_attribute("data-k") == first
        opened.keyboard.press("Escape")
        assert marked(opened, ".box") == 0

    def test_arrows_move_in_the_graph_and_enter_selects(self, opened, kernels):
        start = opened.locator(".graph .box[tabindex='0']")
        assert start.count() == 1
        start.focus()
        moved = set()
        for key in ("ArrowDown", "ArrowUp", "ArrowRight", "ArrowLeft"):
            opened.keyboard.press(key)
            moved.add(opened.evaluate("document.activeElement.dataset.k"))
        assert len(moved) > 1
        opened.keyboard.press("Enter")
        chosen = opened.evaluate("document.activeElement.dataset.k")
        assert opened.locator(".graph .box.pinned").get_attribute("data-k") == chosen

    def test_arrows_move_along_the_lines(self, opened):
        opened.locator("ol.code").first.focus()
        opened.keyboard.press("ArrowDown")
        opened.keyboard.press("Enter")
        assert marked(opened, "ol.code li") >= 1 and marked(opened, ".box") >= 1

    def test_slash_filters(self, opened, kernels):
        opened.keyboard.press("/")
        opened.keyboard.type(kernels[0]["name"])
        rows = opened.locator(".kernels tbody tr")
        assert [rows.nth(i).is_visible() for i in range(rows.count())].count(True) == 1


class TestTables:
    def test_sorts_by_figures_and_by_names(self, opened, kernels):
        def order():
            return opened.evaluate(
                "[...document.querySelectorAll('.kernels tbody tr')].map(r => +r.dataset.k)"
            )

        opened.click(".kernels thead button:has-text('median')")
        by_time = sorted(kernels, key=lambda k: -k["median_us"])
        assert order()[:3] == [k["index"] for k in by_time[:3]]
        assert opened.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
        opened.click(".kernels thead button:has-text('median')")
        assert order()[-1] == by_time[0]["index"]
        opened.click(".kernels thead button:text-is('kernel')")
        assert order() == [k["index"] for k in kernels]

    def test_boundaries_filter_by_kernel_and_by_rule(self, opened, report):
        links = report["programs"][0]["links"]
        visible = "[...document.querySelectorAll('.boundary')].filter(e => !e.hidden).length"
        opened.fill("[data-filter=boundaries]", "k0")
        pairs = {(x["from"], x["to"]) for x in links}
        assert opened.evaluate(visible) == sum(0 in pair for pair in pairs)
        rule = links[0]["why"][0]["rule"]
        opened.click(f".chip[data-rule='{rule}']")
        held = {(x["from"], x["to"]) for x in links if any(w["rule"] == rule for w in x["why"])}
        assert opened.evaluate(visible) == len(held)
        opened.click(f".chip[data-rule='{rule}']")
        assert opened.evaluate(visible) == len(pairs)

    def test_the_command_is_copied(self, opened, kernels):
        button = opened.locator(".kernels .copy").first
        button.click()
        assert button.inner_text() == "copied"
        assert button.get_attribute("data-copy") == f"tinyc repro {kernels[0]['name']} SCRIPT.py"

    def test_passes_step(self, opened, report):
        buttons = opened.locator("[data-pass]")
        assert buttons.count() == len(report["programs"][0]["passes"])
        buttons.first.click()
        opened.keyboard.press("ArrowDown")
        assert opened.locator("tr.now [data-pass]").get_attribute("data-pass") == "1"
        assert opened.inner_text(".diff")


class TestEssentials:
    def test_without_a_script(self, chromium, address, report):
        program = report["programs"][0]
        for tab in open_page(chromium, address, java_script_enabled=False):
            text = tab.inner_text("body")
            assert all(kernel["name"] in text for kernel in program["kernels"])
            assert program["links"][0]["why"][0]["remedy"] in text
            assert "shown by a script, which is off" in text
            assert tab.locator("svg.graph .box .card").first.is_visible()
            assert not tab.locator(".pane.source").is_visible()
            assert not tab.locator("[data-do=fit]").is_visible()
            tab.locator(".wire").first.evaluate("e => e.getAttribute('href')")

    def test_printed(self, chromium, address, report):
        for tab in open_page(chromium, address):
            pdf = tab.pdf(prefer_css_page_size=True)
            assert pdf.startswith(b"%PDF") and len(pdf) > 30_000
            tab.emulate_media(media="print")
            for selector in (".kernels", ".graph .box", ".roofline", ".boundary", "table.peak"):
                assert tab.locator(selector).first.is_visible()
            for selector in (".pane.source", ".tools", ".filter"):
                assert not tab.locator(selector).first.is_visible()
            frame = tab.locator(".pane.graph .body").first
            assert frame.evaluate("e => e.scrollHeight <= e.clientHeight + 1")

    def test_hostile_names_run_nothing(self, chromium, report, tmp_path):
        text = """</script><script>alert(1)</script><img src=x onerror=alert(2)>"'&"""
        hostile = copy.deepcopy(report)
        hostile["title"] = text
        program = hostile["programs"][0]
        kernel = program["kernels"][0]
        kernel |= {"name": text, "source": text, "loops": f"{text} # {text}"}
        kernel["members"][0] |= {"name": text, "text": text}
        program["nodes"][0]["text"] = text
        program["passes"][0] |= {"diff": f"+{text}"}
        page.write(hostile, tmp_path / "r.html")
        for tab in open_page(chromium, (tmp_path / "r.html").as_uri()):
            box(tab, kernel).click()
            tab.click("[data-do=expand]")
            tab.check("[data-do=unfused]")
            assert text in tab.inner_text(".pane.source")
            assert text in tab.inner_text(".diff")
            assert tab.locator("img").count() == 0

    def test_several_programs(self, chromium, report, tmp_path):
        several = copy.deepcopy(report)
        second = copy.deepcopy(report["programs"][0])
        several["programs"].append({**second, "title": "other.py:1", "median_us": 1.0})
        page.write(several, tmp_path / "r.html")
        for tab in open_page(chromium, (tmp_path / "r.html").as_uri()):
            assert tab.locator("#p0").is_visible() and not tab.locator("#p1").is_visible()
            tab.select_option("#program", "p1")
            assert tab.locator("#p1").is_visible() and not tab.locator("#p0").is_visible()
            tab.locator("#p1 .box").first.click()
            assert tab.url.endswith("#p1-k0")
