/** Octets of slices: fetched ahead, the most wanted first, kept up to a bound; what nobody wants is broken off. */

export class Slices {
  /** `load(n, signal)` resolves to an ArrayBuffer; `came(n)` is called when one is there, or with its error. */
  constructor(load, came, mostBytes, atOnce) {
    this.load = load;
    this.came = came;
    this.mostBytes = mostBytes;
    this.atOnce = atOnce;
    this.kept = new Map(); // n -> octets, used longest ago first
    this.bytes = 0;
    this.loading = new Map(); // n -> AbortController
    this.failed = new Set();
    this.wanted = [];
  }

  /** The octets of a slice, or undefined. */
  get(n) {
    const octets = this.kept.get(n);
    if (octets !== undefined) {
      this.kept.delete(n);
      this.kept.set(n, octets);
    }
    return octets;
  }

  /** Fetches these slices, in this order; a failed one again. */
  want(numbers) {
    this.wanted = numbers;
    this.failed.clear();
    for (const [n, control] of this.loading) {
      if (!numbers.includes(n)) control.abort();
    }
    this.#go();
  }

  #go() {
    for (const n of this.wanted) {
      if (this.loading.size >= this.atOnce) return;
      if (!this.kept.has(n) && !this.loading.has(n) && !this.failed.has(n)) this.#fetch(n);
    }
  }

  async #fetch(n) {
    const control = new AbortController();
    this.loading.set(n, control);
    let error = null;
    try {
      this.#keep(n, await this.load(n, control.signal));
    } catch (caught) {
      error = caught;
    }
    this.loading.delete(n);
    if (error && !control.signal.aborted) this.failed.add(n);
    if (!error || !control.signal.aborted) this.came(n, error);
    this.#go();
  }

  #keep(n, octets) {
    this.kept.set(n, octets);
    this.bytes += octets.byteLength;
    for (const [oldest, its] of this.kept) {
      if (this.bytes <= this.mostBytes || oldest === n) return;
      this.kept.delete(oldest);
      this.bytes -= its.byteLength;
    }
  }
}

/** Numbers of slices around `at` of `count`, nearest first; those in the `way` of scrolling (1 or -1) come earlier. */
export function around(at, count, way, reach) {
  const numbers = [at];
  for (let far = 1; far <= reach; far += 1) numbers.push(at + way * far, at - way * far);
  return numbers.filter((n) => n >= 0 && n < count);
}
