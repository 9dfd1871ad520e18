/** The curve of probability along a series, from feet to head: to click on. */

const SVG = "http://www.w3.org/2000/svg";
const ACROSS = 1000;
const HIGH = 100;

export class Curve {
  /** `go(index)` is called with the slice that was clicked on, or that the pointer is drawn to. */
  constructor(place, go) {
    this.place = place;
    this.count = 0;
    const box = { viewBox: `0 0 ${ACROSS} ${HIGH}`, preserveAspectRatio: "none" };
    const drawn = shape("svg", { ...box, "aria-hidden": "true" });
    const middle = HIGH / 2;
    drawn.append(shape("path", { class: "grid", d: `M0 0H${ACROSS}M0 ${middle}H${ACROSS}M0 ${HIGH}H${ACROSS}` }));
    this.lines = [1, 2].map((n) => shape("polyline", { class: `line${n}` }));
    this.mark = shape("path", { class: "mark" });
    drawn.append(...this.lines, this.mark);
    place.replaceChildren(drawn);
    const point = ({ clientX }) => {
      const box = place.getBoundingClientRect();
      go(Math.floor(((clientX - box.left) / box.width) * this.count));
    };
    place.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      place.setPointerCapture(event.pointerId);
      point(event);
    });
    place.addEventListener("pointermove", (event) => {
      if (place.hasPointerCapture(event.pointerId)) point(event);
    });
  }

  /** Draws up to two lines of probabilities [count]. */
  draw(lines) {
    this.count = lines[0].length;
    this.lines.forEach((line, n) => line.setAttribute("points", lines[n] ? corners(lines[n]) : ""));
  }

  /** Marks a slice; `words` say it. */
  show(index, words) {
    this.mark.setAttribute("d", `M${across(index, this.count)} 0V${HIGH}`);
    for (const [name, value] of [["min", 1], ["max", this.count], ["now", index + 1], ["text", words]]) {
      this.place.setAttribute(`aria-value${name}`, value);
    }
  }
}

/** In the middle of the part of its slice, as on triage.html; a level line for a slice alone. */
function corners(values) {
  if (values.length === 1) return [0, ACROSS].map((x) => `${x},${HIGH * (1 - values[0])}`).join(" ");
  return values.map((value, n) => `${across(n, values.length)},${(HIGH * (1 - value)).toFixed(1)}`).join(" ");
}

const across = (index, count) => ((ACROSS * (index + 0.5)) / count).toFixed(1);

function shape(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (tag !== "svg") element.setAttribute("vector-effect", "non-scaling-stroke");
  return element;
}
