/** Asks again and again, more seldom the longer nothing changes, and not at all while nobody looks. */

const LEAST_MS = 500;
const MOST_MS = 10_000;
const FACTOR = 1.5;

/** `ask()` resolves to whether anything changed. Begins at once. */
export function poll(ask) {
  let wait = LEAST_MS;
  let timer = 0;
  let asking = false;
  let ended = false;
  let again = false;

  async function turn() {
    if (asking) {
      again = true;
      return;
    }
    asking = true;
    clearTimeout(timer);
    const changed = await ask();
    asking = false;
    wait = changed || again ? LEAST_MS : Math.min(MOST_MS, FACTOR * wait);
    if (!ended && !document.hidden) timer = setTimeout(turn, again ? 0 : wait);
    again = false;
  }

  function seen() {
    if (!document.hidden && !ended) turn();
  }

  document.addEventListener("visibilitychange", seen);
  turn();
  return {
    now: turn,
    stop() {
      ended = true;
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", seen);
    },
  };
}
