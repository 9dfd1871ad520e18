"""What has moved since training, told: the page `drift.html`, values for `drift.json`, and lines for a terminal.

The same portraits give the same bytes. No id of a study stands in any of them, and no name of a file; words of headers
are those of the scanner.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ich_tfrecords import __version__
from ich_tfrecords.plural import counted
from ich_tfrecords.spec import Window
from ich_tfrecords.views import html_page
from ich_tfrecords.views.html_page import Table
from ich_tfrecords.views.montage import shortened
from trainer.pages import drift_plots, figures
from trainer.pages.drift_plots import Panel, Shares, Words
from trainer.trust import drift
from trainer.trust.drift import ALPHA, CAUSES, DRAWS, FEWEST, GREY, HEADER, NOW, PROBABILITY, VECTORS, Drift, Moved
from trainer.trust.scope import WORDS as UNITS

TEMPLATES = "trainer.pages"
FIRST = 3  # things that stand above all others
FORMAT = 1
_BOTH_WAYS = 1.5  # times the difference of means, beyond which some pixels became brighter and others darker
LETTERS = 40  # of a word of a header
Windows = Sequence[Window]
_TITLES = {
    "slices": "slices a series",
    "manufacturer": "manufacturer",
    "kernel": "kernel",
    **{name: f"{words} ({unit})" for name, (words, unit) in UNITS.items()},
    "vector": "vectors",
    "distance": "distance of the vectors",
}
_SECTIONS = {HEADER: "Headers", GREY: "Grey", VECTORS: "Vectors", PROBABILITY: "Probabilities"}
_KINDS = {HEADER: "headers", GREY: "grey", VECTORS: "vectors", PROBABILITY: "probabilities"}
_READINGS = {True: "moved", False: "chance explains it"}


# words


def title(thing: Moved) -> str:
    """What a thing is called."""
    if thing.kind == GREY:
        return f"grey ({thing.key})"
    return f"probability of {thing.key}" if thing.kind == PROBABILITY else _TITLES[thing.key]


def says(thing: Moved, windows: Windows) -> str:
    """How it is now, and how it was: `mean 120 in training, 100 now`."""
    facts = thing.facts
    if "words" in facts:
        return _of_words(thing)
    if thing.kind == GREY:
        return _of_grey(facts, windows[[one.name for one in windows].index(thing.key)])
    if thing.kind == PROBABILITY:
        before, now = facts["mean"]
        return f"on average {before:.3f} in {thing.against}, {now:.3f} now"
    if thing.key == "vector":
        return f"their mean lies {facts['spreads']:.1f} spreads of a series from that of {thing.against}"
    return _of_numbers(thing)


def _of_words(thing: Moved) -> str:
    facts = thing.facts
    word, (before, now) = next(iter(facts["words"].items()))
    told = f"{_word(word)}: {_percent(before)} of the series in {thing.against}, {_percent(now)} now"
    return f"{told}; {_percent(facts['unseen'])} bear a word that training never had" if facts["unseen"] else told


def _of_numbers(thing: Moved) -> str:
    facts, parts = thing.facts, []
    before, now = facts["mean"]
    if before is not None and now is not None:
        parts.append(f"mean {before:.4g} in {thing.against}, {now:.4g} now")
        if facts["spreads"] is not None:
            way = "higher" if facts["spreads"] > 0 else "lower"
            parts[0] += f" ({abs(facts['spreads']):.1f} spreads {way})"
    before, now = facts["untold"]
    if before != now:
        parts.append(f"not told by {_percent(before)} of the series in {thing.against}, {_percent(now)} now")
    return "; ".join(parts)


def _of_grey(facts: Mapping[str, Any], window: Window) -> str:
    """In HU, as far as the window shows them."""
    before, now = facts["mean"]
    gap, area = ((value * window.width_hu) for value in (now - before, facts["area"]))
    way = "brighter" if gap > 0 else "darker"
    told = f"{abs(gap):.1f} HU {way} over all pixels"
    return f"{told}, {area:.1f} HU regardless of the sign" if area > _BOTH_WAYS * abs(gap) else told


def _word(word: str) -> str:
    return shortened(word, LETTERS)


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share in (0, 1) or 0.01 <= share <= 0.99 else f"{100 * share:.1f}%"


def verdict(found: Drift) -> str:
    """What may be said, in a sentence."""
    count = counted(len(found.things), "thing")
    rate = f"a false-alarm rate of {100 * ALPHA:g}% for all together"
    if not found.moved:
        return f"Nothing has moved that chance does not explain: {count} compared, at {rate}."
    names = [title(one) for one in found.moved[:FIRST]]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    most = "" if len(found.moved) <= FIRST else ", most of all"
    have = "has" if len(found.moved) == 1 else "have"
    return f"{len(found.moved)} of {count} {have} moved beyond chance{most}: {listed} (at {rate})."


def notes(found: Drift) -> list[str]:
    """What is to be known of the comparison."""
    patients = counted(found.patients[NOW], "patient")
    told = [f"With {patients} a thing has to lie about {found.seen_from:.2f} apart to be called moved."]
    for name, many in found.patients.items():
        if many > drift.MOST:
            told.append(f"Of the {many:,} patients {_where(name)} {drift.MOST:,} drawn by the seed count.")
    return told


def _where(name: str) -> str:
    return "of now" if name == NOW else f"of {name}"


def lines(found: Drift, windows: Windows) -> Iterator[str]:
    """For a terminal: the three that moved most, what could not be compared, and the verdict."""
    shown = found.things[:FIRST]
    for thing in shown:
        reading = "" if thing.is_moved else f" ({_READINGS[False]})"
        yield f"{title(thing)}: {says(thing, windows)}; {thing.apart.effect:.2f} apart beyond chance{reading}"
    for key, why in found.unjudged.items():
        yield f"{_unjudged(key)} not compared: {why}"
    yield from notes(found)
    yield verdict(found)


def _unjudged(key: str) -> str:
    return _KINDS[key] if key in CAUSES else _TITLES[key]


# values


def values(found: Drift, windows: Windows, made_from: Mapping[str, str], seed: int) -> dict[str, Any]:
    """Plain values for JSON, things in their order."""
    return {
        "command": "monitor",
        "format": FORMAT,
        "made_from": dict(made_from),
        "alpha": ALPHA,
        "correction": "holm",
        "draws": DRAWS,
        "seed": seed,
        "patients": found.patients[NOW],
        "series": dict(found.series),
        "moved": len(found.moved),
        "verdict": verdict(found),
        "seen_from": found.seen_from,
        "things": [_value(thing, windows) for thing in found.things],
        "not_compared": dict(found.unjudged),
        "version": __version__,
    }


def _value(thing: Moved, windows: Windows) -> dict[str, Any]:
    return {
        "kind": thing.kind,
        "name": thing.key,
        "against": thing.against,
        "moved": thing.is_moved,
        "says": says(thing, windows),
        "separation": thing.apart.separation,
        "by_chance": thing.apart.by_chance,
        "effect": thing.apart.effect,
        "p": thing.apart.p,
        "p_corrected": thing.corrected,
        **thing.facts,
    }


# the page


def page(found: Drift, windows: Windows, made_from: Mapping[str, str], seed: int) -> str:
    """The HTML text. `made_from`: what the numbers rest on, in words."""
    made = {**made_from, "deals by chance, seed": f"{DRAWS:,}, {seed}", "version": __version__}
    return html_page.page(
        "drift.html",
        TEMPLATES,
        title="What has moved since training",
        verdict=verdict(found),
        notes=notes(found),
        facts=_facts(found),
        first=[(title(one), says(one, windows), _READINGS[one.is_moved]) for one in found.things[:FIRST]],
        first_chart=_chart(found.things[:FIRST], windows, "The three things that moved most"),
        things=_things(found.things, windows),
        unjudged=[[_unjudged(key), why] for key, why in found.unjudged.items()],
        sections=_sections(found.things[FIRST:], windows),
        words=[(title(one), _words(one)) for one in found.things if "words" in one.facts],
        rate=f"{100 * ALPHA:g}%",
        draws=DRAWS,
        fewest=FEWEST,
        made_from=Table(["", ""], [[key, value] for key, value in made.items()], words=2),
    )


def _facts(found: Drift) -> dict[str, str]:
    numbers = {
        "moved beyond chance": len(found.moved),
        "things compared": len(found.things),
        "patients now": found.patients[NOW],
        "series now": found.series[NOW],
        "series of training": found.series[drift.TRAINING],
        "series of validation": found.series[drift.VALIDATION],
    }
    return {name: f"{number:,}" for name, number in numbers.items()}


def _things(things: Sequence[Moved], windows: Windows) -> list[list[str]]:
    """A row a thing: its name, reading and how, then separation, by chance, beyond chance, and the corrected p."""
    rows = []
    for one in things:
        numbers = [one.apart.separation, one.apart.by_chance, one.apart.effect]
        told = [title(one), "moved" if one.is_moved else "chance", says(one, windows)]
        rows.append([*told, *(f"{number:.2f}" for number in numbers), f"{one.corrected:.4f}"])
    return rows


def _words(thing: Moved) -> Table:
    facts = thing.facts
    rows = [[_word(word), *map(_percent, shares)] for word, shares in facts["words"].items()]
    if facts["more_words"]:
        rows.append([f"and {facts['more_words']:,} more words", figures.DASH, figures.DASH])
    return Table(["", thing.against, "now"], rows)


def _sections(things: Sequence[Moved], windows: Windows) -> list[tuple[str, html_page.Image]]:
    """Of each kind its things, but for those that stand above already."""
    every = [(kind, [one for one in things if one.kind == kind]) for kind in CAUSES]
    return [(_SECTIONS[kind], _chart(own, windows, _SECTIONS[kind])) for kind, own in every if own]


def _chart(things: Sequence[Moved], windows: Windows, alt: str) -> html_page.Image:
    panels = {title(one): _panel(one, windows) for one in things}
    return figures.image(drift_plots.moved(panels), f"{alt}: shares of series then and now")


def _panel(thing: Moved, windows: Windows) -> Panel:
    facts = thing.facts
    reading = f"{_READINGS[thing.is_moved]}; {thing.apart.effect:.2f} beyond chance"
    if "words" in facts:
        return Words(reading, {_word(word): shares for word, shares in facts["words"].items()})
    before, now = facts["shares"]
    if thing.kind != GREY:
        return Shares(reading, facts["edges"], before, now, deep=thing.kind == PROBABILITY)
    window = windows[[one.name for one in windows].index(thing.key)]
    low = window.level_hu - window.width_hu / 2
    edges = np.linspace(low, low + window.width_hu, len(now) + 1)
    return Shares(
        f"{thing.apart.effect:.2f} beyond chance; share of pixels by HU", edges.tolist(), before, now, deep=True
    )
