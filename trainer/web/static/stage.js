/** The canvas that shows a slice: grey by its window, the map over it; wheel and drags on it. */

import { greyTable, paint } from "./hu.js";
import { mapColors } from "./map_colors.js";

const NOTCH_PX = 50; // of a wheel's movement to the next slice; a notch of a mouse is 100 or more
const LINE_PX = 40; // a wheel that counts lines
const COLORS = mapColors();

export class Stage {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.layer = document.createElement("canvas"); // the map in color
    this.window = "";
  }

  /** Draws `hu`, Int16 [rows * columns]; `map`, Uint8 of the same shape or null, as strong as `opacity` in [0, 1]. */
  draw(hu, rows, columns, { level, width }, map, opacity) {
    this.#table(level, width);
    if (this.canvas.width !== columns || this.canvas.height !== rows) {
      [this.canvas.width, this.canvas.height] = [columns, rows];
    }
    this.context.putImageData(picture(rows, columns, (pixels) => paint(hu, this.table, pixels)), 0, 0);
    if (map) this.#lay(map, rows, columns, opacity);
  }

  #table(level, width) {
    const window = `${level}/${width}`;
    if (this.window !== window) this.table = greyTable(level, width);
    this.window = window;
  }

  #lay(map, rows, columns, opacity) {
    [this.layer.width, this.layer.height] = [columns, rows];
    const colored = picture(rows, columns, (pixels) => map.forEach((value, n) => (pixels[n] = COLORS[value])));
    this.layer.getContext("2d").putImageData(colored, 0, 0);
    this.context.globalAlpha = opacity;
    this.context.drawImage(this.layer, 0, 0);
    this.context.globalAlpha = 1;
  }

  /** Column and row of the slice under a pointer. */
  under(event) {
    const box = this.canvas.getBoundingClientRect();
    const part = (at, from, size, count) => Math.min(count - 1, Math.max(0, Math.floor(((at - from) / size) * count)));
    return {
      column: part(event.clientX, box.left, box.width, this.canvas.width),
      row: part(event.clientY, box.top, box.height, this.canvas.height),
    };
  }
}

function picture(rows, columns, fill) {
  const image = new ImageData(columns, rows);
  fill(new Uint32Array(image.data.buffer));
  return image;
}

/** Calls `step(1)` or `step(-1)` for each notch; up is 1. A pinch, a wheel with Ctrl, stays the browser's. */
export function onWheel(element, step) {
  let rest = 0;
  element.addEventListener(
    "wheel",
    (event) => {
      if (event.ctrlKey || !event.deltaY) return;
      event.preventDefault();
      const moved = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? LINE_PX * event.deltaY : event.deltaY;
      rest = Math.abs(moved) >= NOTCH_PX ? moved : rest + moved;
      if (Math.abs(rest) < NOTCH_PX) return;
      step(rest < 0 ? 1 : -1);
      rest = 0;
    },
    { passive: false },
  );
}

/** Calls `moved(right, up)` with the pixels since the last call, while the main button or a finger is down. */
export function onDrag(element, moved) {
  let last = null;
  element.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !event.isPrimary) return;
    last = event;
    element.setPointerCapture(event.pointerId);
  });
  element.addEventListener("pointermove", (event) => {
    if (!last || event.pointerId !== last.pointerId) return;
    moved(event.clientX - last.clientX, last.clientY - event.clientY);
    last = event;
  });
  for (const end of ["pointerup", "pointercancel"]) element.addEventListener(end, () => (last = null));
}
