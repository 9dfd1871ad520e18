/** The table of labels: probability of the slice and of the study, and which of them the curve shows. */

import { at, bar, make, say } from "./dom.js";
import { probabilityText } from "./words.js";

export class Probabilities {
  /** `labels`: names; "any", or the first where none is called so, says whether one of the others is present. */
  constructor(labels, chose) {
    this.any = Math.max(0, labels.indexOf("any"));
    this.chosen = this.any;
    this.rows = labels.map((label, n) => this.#row(label, n, chose));
    at("probabilities").replaceChildren(...this.rows.map(({ row }) => row));
  }

  #row(label, n, chose) {
    const choice = make("input", { type: "radio", name: "curve", id: `curve-${n}`, "aria-label": `curve of ${label}` });
    choice.checked = n === this.chosen;
    choice.addEventListener("change", () => {
      this.chosen = n;
      chose(n);
    });
    const [slice, study] = [make("b"), make("span")];
    const line = bar(0);
    const name = make("th", { scope: "row" }, make("label", { for: `curve-${n}` }, label));
    const value = make("td", { class: "number" }, slice, line);
    const row = make("tr", {}, make("td", {}, choice), name, value, make("td", { class: "number" }, study));
    return { row, slice, study, line };
  }

  /** Shows the probabilities of a slice. */
  slice(values) {
    this.rows.forEach(({ slice, line }, n) => {
      say(slice, probabilityText(values[n]));
      line.firstChild.style.width = `${100 * values[n]}%`;
    });
  }

  /** Shows those of its study, or none. */
  study(values) {
    this.rows.forEach(({ study }, n) => say(study, values ? probabilityText(values[n]) : ""));
  }
}
