"""Both pages for everybody: names, keys, focus, contrast, light and dark; nothing overlaps, wide or narrow."""

from __future__ import annotations

import keyboard
import pytest

from ich_tfrecords import NOT_A_DEVICE

pytestmark = pytest.mark.slow

# texts whose contrast with what lies behind them is below 4.5 (WCAG 2.1, 1.4.3); what is disabled does not count
FAINT = """() => {
  const parts = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = ([red, green, blue]) => [red, green, blue]
    .map((one) => one / 255)
    .map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4))
    .reduce((sum, one, n) => sum + one * [0.2126, 0.7152, 0.0722][n], 0);
  const behind = (one) => {
    const color = parts(getComputedStyle(one).backgroundColor);
    return color.length === 3 || color[3] === 1 ? color : behind(one.parentElement);
  };
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const one = texts.currentNode.parentElement;
    if (!texts.currentNode.textContent.trim() || !one.checkVisibility() || one.closest(":disabled, option")) continue;
    const [text, ground] = [parts(getComputedStyle(one).color), behind(one)].map(light);
    const contrast = (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
    if (contrast < 4.5) found.push(`${contrast.toFixed(2)}: ${texts.currentNode.textContent.trim()}`);
  }
  return found;
}"""
# words of ordinary length that go on in another line
BROKEN = """() => {
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    if (!texts.currentNode.parentElement.checkVisibility()) continue;
    for (const { 0: word, index } of texts.currentNode.textContent.matchAll(/\\S{1,20}(?!\\S)/g)) {
      if (index && texts.currentNode.textContent[index - 1].trim()) continue;
      const range = document.createRange();
      range.setStart(texts.currentNode, index);
      range.setEnd(texts.currentNode, index + word.length);
      if (new Set([...range.getClientRects()].map(({ top }) => top)).size > 1) found.push(word);
    }
  }
  return found;
}"""
SEEN = """() => {
  const style = getComputedStyle(document.activeElement);
  return style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
}"""
FOCUSED = "() => document.activeElement.id || document.activeElement.getAttribute('aria-label') || ''"


@pytest.fixture(params=["list", "viewer"])
def show(request, open_page, work, head):
    """Opens the page full of things, one way or another."""
    name = "a_very_long_name_" * 8 + ".zip"
    rejects = [{"file": f"{name}/{number}.dcm", "reason": "truncated"} for number in range(3)]
    entry = work.done(head[:6], series=2, name=name, rejects=rejects)
    entry["series"][0]["study_uid"] = entry["studies"][0]["study_uid"] = "1.2." + "840" * 20
    if request.param == "list":
        work.add(state="working", progress={"stage": "reading", "done": 3, "files": 34}, name=name)
        work.add(state="failed", error="the zip is damaged", name=name)
    path, there = ("/", "#ranked li") if request.param == "list" else (entry["url"], ".stage:not(.stale)")

    def show(width_px=1280, **context):
        page = open_page(path, width_px, **context)
        page.locator(there).first.wait_for()
        if request.param == "viewer":
            page.check("#overlay")
            page.check("#curve-2")
        return page

    return show


@pytest.mark.parametrize("width_px", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overlaps_or_is_faint(show, width_px, scheme):
    page = show(width_px, color_scheme=scheme)
    assert page.evaluate(keyboard.OVERLAPS) == []
    assert not page.evaluate(keyboard.TOO_WIDE)
    assert page.evaluate(FAINT) == []
    assert page.evaluate(BROKEN) == []
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 18, 21)"
    assert dark == (scheme == "dark")


def test_every_control_has_a_name_and_the_page_a_language(show):
    page = show()
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    focusable = [
        node
        for node in nodes
        if any(one["name"] == "focusable" and one["value"]["value"] for one in node.get("properties", ()))
        and node["role"]["value"] != "RootWebArea"
    ]
    assert len(focusable) > 5
    assert [node["role"]["value"] for node in focusable if not node["name"]["value"]] == []
    assert page.get_attribute("html", "lang") == "en"
    assert page.locator("h1").count() == 1


def test_every_control_is_reached_by_the_tabulator_and_the_focus_is_seen(show):
    page = show()
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        if name := page.evaluate(FOCUSED):
            assert page.evaluate(SEEN), name
            reached.append(name)
    wanted = page.evaluate(
        """() => [...document.querySelectorAll("a[href], button, input, select, [tabindex='0']")]
        .filter((one) => one.checkVisibility() && !one.disabled && (one.type !== "radio" || one.checked))
        .map((one) => one.id || one.getAttribute("aria-label") || "")"""
    )
    assert set(wanted) - {""} <= set(reached)
    assert len(wanted) > 5


def test_what_is_to_be_known_stands_on_each_page(show):
    page = show()
    assert NOT_A_DEVICE in page.inner_text("header")
    assert page.get_by_text("epidural is not calibrated: no positive slice").is_visible()


# --- the eyes themselves ---


def test_a_bad_page_is_seen_to_be_bad(chromium):
    page = chromium.new_page()
    page.set_content(
        """<body style="background: #fff"><p style="color: #999">faint</p><h2 style="position: absolute; top: 40px">
        over</h2><button style="position: absolute; top: 45px">under</button><div style="width: 3000px">.</div>
        <p style="width: 3em; margin-top: 200px; overflow-wrap: anywhere">a intraparenchymal b</p>"""
    )
    assert [line.split(": ")[1] for line in page.evaluate(FAINT)] == ["faint"]
    assert len(page.evaluate(keyboard.OVERLAPS)) == 1
    assert page.evaluate(keyboard.TOO_WIDE)
    assert page.evaluate(BROKEN) == ["intraparenchymal"]
    page.close()
