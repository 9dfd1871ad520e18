/** The series of an upload on the page: which slice, which window, which map, and what is said of it. */

import * as api from "./api.js";
import { Curve } from "./curve.js";
import { at, make, say } from "./dom.js";
import { Probabilities } from "./probabilities.js";
import { around, Slices } from "./slices.js";
import { onDrag, onWheel, Stage } from "./stage.js";
import { counted, probabilityText, scopeText, shortened } from "./words.js";
import { Windows } from "./windows.js";

const MOST_BYTES = 128 << 20; // of slices kept, which is 256 of the usual size
const MOST_MAP_BYTES = 32 << 20;
const REACH = 24; // slices fetched ahead in each direction
const AT_ONCE = 4; // requests
const REST_MS = 200; // at one slice, before its map is asked for
const AGAIN_MS = 3000; // after which a slice that did not come is asked for once more
const PAGE = 10; // slices
const UID_LETTERS = 64;
const OPTION_LETTERS = 40;
const MOVES = {
  ArrowUp: (n) => n + 1, ArrowRight: (n) => n + 1, ArrowDown: (n) => n - 1, ArrowLeft: (n) => n - 1,
  PageUp: (n) => n + PAGE, PageDown: (n) => n - PAGE, Home: () => 0, End: (n, count) => count - 1,
};

export class Series {
  constructor(id, entry) {
    this.entry = entry;
    this.stage = new Stage(at("picture"));
    this.windows = new Windows(entry.windows, () => this.#draw());
    this.curve = new Curve(at("curve"), (index) => this.go(index));
    this.probabilities = new Probabilities(entry.labels, (label) => this.#drawCurve(label));
    const came = (n, error) => this.#came(n, error);
    this.slices = new Slices((n, signal) => api.slice(id, n, signal), came, MOST_BYTES, AT_ONCE);
    const mapCame = (n, error) => this.#mapCame(n, error);
    this.maps = new Slices((n, signal) => this.#loadMap(id, n, signal), mapCame, MOST_MAP_BYTES, 1);
    this.mapLabels = new Map(); // n -> label that the map of the slice speaks for
    this.timers = { map: 0, again: 0 };
    this.#listen();
    this.#offer();
    this.choose(this.#first());
  }

  get count() {
    return this.series.slices.length;
  }

  get slice() {
    return this.series.slices[this.index];
  }

  /** Shows a series at its driving slice. */
  choose(number) {
    this.series = this.entry.series[number];
    this.study = this.entry.studies.find(({ study_uid }) => study_uid === this.series.study_uid);
    at("series").value = number;
    at("slice").max = this.count;
    at("scope").hidden = !this.study?.scope_reason || this.study.in_scope === "unknown";
    say(at("scope"), this.study ? scopeText(this.study) : "");
    at("partial").hidden = !this.study?.partial;
    say(at("partial"), "PARTIAL: judged by a part of its slices");
    say(at("study"), `Study ${shortened(this.series.study_uid, UID_LETTERS)}${this.#rank()}`);
    say(at("feet"), `feet${millimetres(this.series.slices[0].z_mm)}`);
    say(at("head"), `head${millimetres(this.series.slices[this.count - 1].z_mm)}`);
    this.probabilities.study(this.study?.probabilities ?? null);
    this.#drawCurve(this.probabilities.chosen);
    this.index = -1;
    this.go(this.#driver());
  }

  /** Shows the slice with this index, or the nearest that there is. */
  go(wanted) {
    const index = Math.min(this.count - 1, Math.max(0, wanted));
    if (index === this.index) return;
    const way = index >= this.index ? 1 : -1;
    this.index = index;
    clearTimeout(this.timers.again);
    this.#describe();
    const ahead = around(index, this.count, way, this.#reach());
    this.slices.want(ahead.map((near) => this.series.slices[near].n));
    this.#wantMap();
    this.#draw();
  }

  // --- what is said ---

  #describe() {
    const { slice, index, count } = this;
    const place = `slice ${index + 1} of ${count}${millimetres(slice.z_mm)}`;
    const any = this.probabilities.any;
    const words = `${place}, ${this.entry.labels[any]} ${probabilityText(slice.probabilities[any])}`;
    say(at("position"), place);
    say(at("under"), "");
    at("slice").value = index + 1;
    at("slice").setAttribute("aria-valuetext", words);
    at("picture").setAttribute("aria-label", `${place}, ${this.windows.words}`);
    at("driver").disabled = index === this.#driver();
    this.probabilities.slice(slice.probabilities);
    this.curve.show(index, words);
  }

  #drawCurve(label) {
    const { any } = this.probabilities;
    const told = label === any ? [any] : [any, label];
    this.curve.draw(told.map((one) => this.series.slices.map(({ probabilities }) => probabilities[one])));
    const keys = told.map((one, n) => make("span", { class: `key${n + 1}` }, this.entry.labels[one]));
    at("legend").replaceChildren(...keys.flatMap((key) => [key, " "]), `of ${counted(this.count, "slice")}`);
    if (this.index >= 0) this.curve.show(this.index, at("slice").getAttribute("aria-valuetext"));
  }

  #rank() {
    const all = this.entry.studies.length;
    return this.study && all > 1 ? `, number ${this.study.rank} of ${all} in urgency` : "";
  }

  /** Index of the slice with the greatest probability of any hemorrhage. */
  #driver() {
    const { any } = this.probabilities;
    const values = this.series.slices.map(({ probabilities }) => probabilities[any]);
    return values.indexOf(Math.max(...values));
  }

  // --- what is drawn ---

  #draw() {
    const { n, rows, columns } = this.slice;
    const octets = this.slices.get(n);
    at("loading").hidden = octets !== undefined;
    at("stage").classList.toggle("stale", octets === undefined);
    if (octets === undefined) return say(at("loading"), `Slice ${this.index + 1} is being fetched`);
    say(at("gone"), "");
    const map = at("overlay").checked ? this.maps.get(n) : undefined;
    const lay = map === undefined ? null : new Uint8Array(map);
    this.stage.draw(new Int16Array(octets), rows, columns, this.windows, lay, Number(at("opacity").value) / 100);
    return at("picture").setAttribute("aria-label", `${at("position").textContent}, ${this.windows.words}`);
  }

  #came(n, error) {
    if (n !== this.slice.n) return;
    if (!error) return this.#draw();
    if (!(error instanceof api.Problem)) throw error;
    say(at("gone"), error.message);
    say(at("loading"), `Slice ${this.index + 1} could not be fetched`);
    return this.#again(error, () => this.slices.want([this.slice.n]));
  }

  /** Asks once more a little later, unless what was asked for is gone. */
  #again({ status }, ask) {
    if (status !== 404) this.timers.again = setTimeout(ask, AGAIN_MS);
  }

  #wantMap() {
    clearTimeout(this.timers.map);
    if (!at("overlay").checked) return say(at("map-told"), "");
    if (this.maps.get(this.slice.n) !== undefined) return this.#tellMap();
    say(at("map-told"), "The map of this slice is being made.");
    this.timers.map = setTimeout(() => this.maps.want([this.slice.n]), REST_MS);
  }

  async #loadMap(id, n, signal) {
    const { octets, label } = await api.map(id, n, signal);
    this.mapLabels.set(n, label);
    return octets;
  }

  #mapCame(n, error) {
    if (n !== this.slice.n || !at("overlay").checked) return;
    if (error && !(error instanceof api.Problem)) throw error;
    if (!error) {
      this.#tellMap();
      return this.#draw();
    }
    say(at("map-told"), `The map is not there: ${error.message}`);
    return this.#again(error, () => this.#wantMap());
  }

  #tellMap() {
    say(at("map-told"), `Colors: what speaks for ${this.mapLabels.get(this.slice.n)} in this slice, yellow the most.`);
  }

  /** How many slices are fetched ahead: no more than fit into what is kept. */
  #reach() {
    const { rows, columns } = this.slice;
    return Math.min(REACH, Math.floor(MOST_BYTES / (2 * rows * columns) / 2) - 1);
  }

  // --- what a person does ---

  #listen() {
    addEventListener("keydown", (event) => this.#key(event));
    onWheel(at("stage"), (step) => this.go(this.index + step));
    onDrag(at("stage"), (right, up) => this.windows.move(right, up));
    at("stage").addEventListener("pointermove", (event) => this.#under(event));
    at("slice").addEventListener("input", () => this.go(Number(at("slice").value) - 1));
    at("series").addEventListener("change", () => this.choose(Number(at("series").value)));
    at("driver").addEventListener("click", () => this.go(this.#driver()));
    at("opacity").addEventListener("input", () => this.#draw());
    at("overlay").addEventListener("change", () => {
      at("opacity").disabled = !at("overlay").checked;
      this.#wantMap();
      this.#draw();
    });
  }

  /** Arrows and their like scroll, but where a field, a choice or another slider has them for itself. */
  #key(event) {
    const move = MOVES[event.key];
    const taken = event.target.closest("input:not(#slice, [type=checkbox]), select, textarea");
    if (!move || taken || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    this.go(move(this.index, this.count));
  }

  #under(event) {
    const octets = this.slices.get(this.slice.n);
    if (octets === undefined) return;
    const { column, row } = this.stage.under(event);
    const hu = new Int16Array(octets)[row * this.slice.columns + column];
    say(at("under"), `${hu} HU at column ${column + 1}, row ${row + 1}`);
  }

  #offer() {
    const { series, studies } = this.entry;
    at("choice").hidden = series.length < 2;
    at("series").replaceChildren(
      ...series.map((one, number) => {
        const rank = studies.find(({ study_uid }) => study_uid === one.study_uid)?.rank ?? "?";
        const [study, uid] = [one.study_uid, one.series_uid].map((name) => shortened(name, OPTION_LETTERS));
        const words = `study ${rank}: ${counted(one.slices.length, "slice")}, ${study}, series ${uid}`;
        return make("option", { value: number }, words);
      }),
    );
  }

  /** The series that the address names the study of, or that of the most urgent one. */
  #first() {
    const named = this.entry.series.findIndex(({ study_uid }) => `#${encodeURIComponent(study_uid)}` === location.hash);
    const urgent = this.entry.studies.find(({ rank }) => rank === 1)?.study_uid;
    return Math.max(0, named < 0 ? this.entry.series.findIndex(({ study_uid }) => study_uid === urgent) : named);
  }
}

const millimetres = (z) => (z === null ? "" : `, ${z.toFixed(1)} mm`);
