/**
 * Times the first draw of each kind of view, from the moment its data was in hand until a frame shows it, as performance measures
 * (`draw-timeline`, `draw-table`, and `draw` for each of them) that a benchmark can read. Never sends them anywhere.
 */

const done = new Set();

/**
 * Call when the elements are made.
 * @param {string} what
 * @param {number} begun when the view had its data, `performance.now()`
 */
export function drawn(what, begun) {
  if (done.has(what)) return;
  done.add(what);
  // The first callback runs before the frame that has the elements is painted, the second after it.
  requestAnimationFrame(() => requestAnimationFrame(() => {
    performance.mark(`${what}-drawn`);
    const span = { start: begun, end: performance.now() };
    performance.measure('draw', { ...span, detail: what });
    performance.measure(`draw-${what}`, span);
  }));
}
