/**
 * The time axis and the lines below it, at round local times, and the line of the present.
 * Never draws lanes. What it draws is hidden from screen readers: bars say their times themselves.
 */

import { svg } from './dom.js';
import { pixel } from './marks.js';
import { ticks } from './time.js';

/** Room that a label needs. */
const LABEL_PX = 78;

/**
 * @param {SVGElement} bar where the labels go
 * @param {SVGElement} grid where the lines go
 * @param {import('./marks.js').Scale} scale
 * @param {number} height of all lanes
 */
export function axis(bar, grid, scale, height) {
  const labels = [];
  const lines = [];
  for (const tick of ticks(scale.since, scale.until, Math.max(2, Math.floor(scale.width / LABEL_PX)))) {
    const x = Math.round(scale.left + pixel(scale, tick.at)) + 0.5;
    const end = x > scale.left + scale.width - 22;
    labels.push(svg('path', { d: `M${x} 19V24` }), svg('text', { class: tick.day ? 'day' : null, x, y: 14, 'text-anchor': end ? 'end' : 'middle', text: tick.label }));
    lines.push(svg('path', { class: tick.day ? 'day' : null, d: `M${x} 0V${height}` }));
  }
  if (scale.now >= scale.since && scale.now <= scale.until) {
    const x = Math.round(scale.left + pixel(scale, scale.now)) + 0.5;
    lines.push(svg('path', { class: 'now', d: `M${x} 0V${height}` }));
    labels.push(svg('path', { class: 'now', d: `M${x} 17V24` }));
  }
  lines.push(svg('path', { class: 'edge', d: `M${scale.left + 0.5} 0V${height}` }));
  labels.unshift(svg('text', { class: 'day', x: 8, y: 14, text: 'port' }));
  bar.replaceChildren(...labels);
  grid.replaceChildren(...lines);
}
