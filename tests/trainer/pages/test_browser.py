"""The eyes of the page tests: a bad page must be seen to be bad, and a good one to be good."""

from __future__ import annotations

import browser
import pytest
from PIL import Image

from ich_tfrecords.views import html_page
from ich_tfrecords.views.html_page import Table

BAD = """<body>hi<img src="http://127.0.0.1:9/x.png"><img src="data:image/png;base64,AAAA">
<div style="width:3000px">wide</div><script>console.error("bad"); throw Error("worse")</script></body>"""

GOOD = """{% extends "base.html" %}{% import "parts.html" as parts %}{% block sections %}
<h2>{{ heading }}</h2>{{ parts.image(picture) }}{{ parts.table(many) }}
{{ parts.tiles({"slices": "3"}) }}{% endblock %}"""


@pytest.mark.slow
def test_a_bad_page_is_seen(tmp_path):
    (tmp_path / "bad.html").write_text(BAD)
    report = browser.render(tmp_path / "bad.html", tmp_path / "bad.png")
    assert report.requests == ["http://127.0.0.1:9/x.png"]
    assert (report.images, report.broken_images, report.scripts) == (2, 2, 1)
    assert report.too_wide
    assert any("bad" in line for line in report.console)
    assert any("worse" in line for line in report.console)


@pytest.mark.slow
def test_a_good_page_is_clean_and_its_picture_is_whole(tmp_path):
    dot = Image.new("RGB", (4, 4), "red")
    dot.save(tmp_path / "dot.png")
    picture = html_page.image((tmp_path / "dot.png").read_bytes(), "png", "a dot", 40)
    page = html_page.templates(html_page.OWN).from_string(GOOD)
    text = page.render(
        title="good", heading="One <script>alert(1)</script>", picture=picture, many=Table(["a"], [["<b>"]] * 40)
    )
    (tmp_path / "good.html").write_text(text)
    report = browser.render(tmp_path / "good.html", tmp_path / "good.png")
    assert (report.console, report.requests, report.broken_images, report.scripts) == ([], [], 0, 0)
    assert report.images == 1
    assert not report.too_wide
    assert "One <script>alert(1)</script>" in report.text
    with Image.open(tmp_path / "good.png") as shown:
        assert shown.width == browser.WIDTH_PX
        assert shown.height > browser.HEIGHT_PX
        red = [count for count, color in shown.convert("RGB").getcolors(1 << 24) if color == (255, 0, 0)]
    assert red
    assert red[0] > 1000
