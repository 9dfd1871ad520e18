/** HU to grey in the browser: DICOM PS3.3 C.11.2.1.3.2 (LINEAR_EXACT), in integers, as ich_tfrecords/pixels.py does. */

const LOWEST_HU = -32768;
const VALUES = 65536; // of int16

/** What windows besides those of the model are usual for a head; level and width in HU. */
export const USUAL = [
  { name: "stroke", level: 40, width: 40 },
  { name: "soft tissue", level: 50, width: 350 },
  { name: "bone, wide", level: 600, width: 2800 },
];

/** Grey of each HU, Uint8 [65536] from -32768 on: floor(255*(hu - low)/width + 1/2), clipped, in halves of a HU. */
export function greyTable(level, width) {
  const low = 2 * level - width;
  const table = new Uint8Array(VALUES);
  for (let n = 0; n < VALUES; n += 1) {
    const above = Math.min(Math.max(2 * (n + LOWEST_HU) - low, 0), 2 * width);
    table[n] = Math.floor((510 * above + 2 * width) / (4 * width));
  }
  return table;
}

/** Opaque grey pixels (RGBA in 32 bits) of `hu`, Int16 [n], into `pixels`, Uint32 [n]. */
export function paint(hu, table, pixels) {
  for (let n = 0; n < hu.length; n += 1) pixels[n] = 0xff000000 | (0x010101 * table[hu[n] - LOWEST_HU]);
}
