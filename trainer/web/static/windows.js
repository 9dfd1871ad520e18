/** The window on the page: presets, two fields, and what drags on the picture do to it. */

import { at, make } from "./dom.js";
import { USUAL } from "./hu.js";

const LEVELS = [-32768, 32767];
const WIDTHS = [1, 65535];
const PART = 1 / 256; // of the width, for a pixel of a drag

export class Windows {
  /** `presets`: those of the model, [{ name, level, width }]; `changed()` is called after each change. */
  constructor(presets, changed) {
    this.changed = changed;
    this.presets = [...presets, ...USUAL.filter(({ name }) => !presets.some((own) => own.name === name))];
    at("windows").replaceChildren(...this.presets.map((preset) => this.#button(preset)));
    for (const name of ["level", "width"]) at(name).addEventListener("change", () => this.#typed());
    this.#set(this.presets[0].level, this.presets[0].width);
  }

  get words() {
    return `level ${this.level}, width ${this.width} HU`;
  }

  /** Pixels of a drag: to the right wider, up a higher level; a wide window moves faster. */
  move(right, up) {
    const step = Math.max(1, this.free.width) * PART;
    this.free.level = within(this.free.level + step * up, LEVELS);
    this.free.width = within(this.free.width + step * right, WIDTHS);
    this.#show();
    this.changed();
  }

  #button(preset) {
    const { name, level, width } = preset;
    const button = make("button", { type: "button", title: `level ${level}, width ${width} HU` }, name);
    button.addEventListener("click", () => {
      this.#set(level, width);
      this.changed();
    });
    return button;
  }

  /** What stands in the fields, or what stood there where that is no number. */
  #typed() {
    const read = (name) => (at(name).value === "" ? this[name] : at(name).valueAsNumber);
    this.#set(read("level"), read("width"));
    this.changed();
  }

  #set(level, width) {
    this.free = { level: within(level, LEVELS), width: within(width, WIDTHS) }; // between whole HU while it is dragged
    this.#show();
  }

  #show() {
    this.level = Math.round(this.free.level);
    this.width = Math.round(this.free.width);
    at("level").value = this.level;
    at("width").value = this.width;
    this.presets.forEach(({ level, width }, n) => {
      at("windows").children[n].setAttribute("aria-pressed", level === this.level && width === this.width);
    });
  }
}

const within = (value, [least, most]) => Math.min(most, Math.max(least, value));
