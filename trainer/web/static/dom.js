/** Elements made of plain texts: what comes from files or the server stays text. */

/** An element; `attributes` as in HTML (`true` sets one without a value, `false` and null leave it out). */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

/** The element of the page with this id. */
export const at = (id) => document.getElementById(id);

/** Changes the text of an element where it differs, so that a live region speaks only of news. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A bar of `part` in [0, 1]. */
export function bar(part) {
  const inner = make("i");
  inner.style.width = `${100 * part}%`;
  return make("span", { class: "bar", "aria-hidden": "true" }, inner);
}
