"""Slices are fetched ahead within a bound; a page asks seldom when nothing changes, and never while nobody looks."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def page(open_page):
    return open_page("/login")  # the one without a script of its own


SLICES = """async ({ wants, most, atOnce }) => {
  const { Slices } = await import("/static/slices.js");
  const started = [], broken = [], came = [];
  const waiting = new Map();
  const load = (n, signal) => new Promise((resolve, reject) => {
    started.push(n);
    waiting.set(n, () => (n < 0 ? reject(new Error("no")) : resolve(new ArrayBuffer(10))));
    signal.addEventListener("abort", () => { broken.push(n); waiting.delete(n); reject(new Error("aborted")); });
  });
  const slices = new Slices(load, (n, error) => came.push([n, error?.message ?? null]), most, atOnce);
  let loadingMost = 0;
  for (const [numbers, answers] of wants) {
    slices.want(numbers);
    for (let turn = 0; turn < answers && waiting.size; turn += 1) {
      loadingMost = Math.max(loadingMost, slices.loading.size);
      const [n, answer] = waiting.entries().next().value;
      waiting.delete(n);
      answer();
      await new Promise((resolve) => setTimeout(resolve));
    }
  }
  await new Promise((resolve) => setTimeout(resolve));
  return { started, broken, came, kept: [...slices.kept.keys()], bytes: slices.bytes, loadingMost };
}"""


def fetched(page, wants, most=1000, at_once=2):
    return page.evaluate(SLICES, {"wants": wants, "most": most, "atOnce": at_once})


def test_slices_are_fetched_in_the_order_of_the_wish_and_few_at_once(page):
    got = fetched(page, [([5, 6, 4, 7], 9)])
    assert got["started"] == [5, 6, 4, 7]
    assert got["loadingMost"] == 2
    assert got["came"] == [[n, None] for n in (5, 6, 4, 7)]


def test_what_is_kept_has_a_bound_and_the_longest_unused_goes(page):
    got = fetched(page, [([n], 1) for n in range(12)], most=35)
    assert got["kept"] == [9, 10, 11]
    assert got["bytes"] == 30


def test_a_slice_beyond_the_bound_is_shown_all_the_same(page):
    assert fetched(page, [([1], 1)], most=5)["kept"] == [1]


def test_what_nobody_wants_any_more_is_broken_off_and_not_told(page):
    got = fetched(page, [([1, 2, 3], 0), ([9, 2], 9)])
    assert got["broken"] == [1]
    assert got["started"] == [1, 2, 9]
    assert sorted(n for n, _ in got["came"]) == [2, 9]


def test_what_is_there_is_not_fetched_again_and_what_failed_is_at_the_next_wish(page):
    got = fetched(page, [([1, -1], 9), ([1, -1], 9)])
    assert got["started"] == [1, -1, -1]
    assert got["came"] == [[1, None], [-1, "no"], [-1, "no"]]


def test_the_nearest_come_first_those_ahead_before_those_behind(page):
    around = "async (given) => (await import('/static/slices.js')).around(...given)"
    assert page.evaluate(around, [3, 10, 1, 2]) == [3, 4, 2, 5, 1]
    assert page.evaluate(around, [3, 10, -1, 2]) == [3, 2, 4, 1, 5]
    assert page.evaluate(around, [0, 2, 1, 5]) == [0, 1]


# --- how often it asks ---

POLLED = """async (changes) => {
  const { poll } = await import("/static/poll.js");
  const waits = [];
  const real = window.setTimeout;
  let turns = 0;
  await new Promise((resolve) => {
    window.setTimeout = (turn, wait) => {
      waits.push(wait);
      if (waits.length < changes.length) real(turn); else { window.setTimeout = real; resolve(); }
    };
    poll(async () => changes[turns++]);
  });
  return waits;
}"""


def test_it_asks_more_seldom_the_longer_nothing_changes(page):
    waits = page.evaluate(POLLED, [False] * 9 + [True, False])
    assert waits[:3] == [750, 1125, 1687.5]
    assert waits[8] == 10_000
    assert waits[9:] == [500, 750]


HIDDEN = """async () => {
  const { poll } = await import("/static/poll.js");
  let hidden = true, turns = 0;
  Object.defineProperty(document, "hidden", { get: () => hidden });
  const polling = poll(async () => { turns += 1; return true; });
  const waited = () => new Promise((resolve) => setTimeout(resolve, 1500));
  await waited();
  const unseen = turns;
  hidden = false;
  document.dispatchEvent(new Event("visibilitychange"));
  await waited();
  const seen = turns;
  polling.stop();
  await waited();
  return { unseen, seen, stopped: turns };
}"""


def test_it_rests_while_nobody_looks_and_ends_when_told(page):
    turns = page.evaluate(HIDDEN)
    assert turns["unseen"] == 1
    assert turns["seen"] >= 3
    assert turns["stopped"] == turns["seen"]
