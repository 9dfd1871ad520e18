/** Colors of the map of where a model looks: those of predict's pictures, brighter is more. */

const MOST_ALPHA = 0.85; // the slice stays visible under the strongest color
const DIMMED = 0.35; // black under the colors, so that brain is nowhere brighter than what speaks
// matplotlib's inferno from 0.45 on, in equal steps; what is darker would pass for air in the slice
const INFERNO = [
  [168, 46, 95], [193, 58, 80], [217, 77, 61], [235, 102, 40], [247, 130, 18],
  [252, 163, 9], [250, 196, 42], [242, 230, 97], [252, 255, 164],
];

/** RGBA (in 32 bits, Uint32 [256]) of each strength of a map, to be laid over the grey slice. */
export function mapColors() {
  return Uint32Array.from({ length: 256 }, (_, value) => {
    const strength = value / 255;
    const place = strength * (INFERNO.length - 1);
    const below = Math.min(Math.floor(place), INFERNO.length - 2);
    const channel = (n) => INFERNO[below][n] + (place - below) * (INFERNO[below + 1][n] - INFERNO[below][n]);
    const color = MOST_ALPHA * Math.sqrt(strength);
    const alpha = 1 - (1 - color) * (1 - DIMMED); // of the color over the dimming black
    const [red, green, blue] = [0, 1, 2].map((n) => Math.round((color * channel(n)) / alpha));
    return ((Math.round(255 * alpha) << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  });
}
