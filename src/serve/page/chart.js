/**
 * The drawing surface of the timeline: an axis and one SVG as tall as all lanes together, in which only the lanes near the window exist.
 * Follows scrolling, resizing and printing. Keeps the lane that has the focus, wherever it is scrolled to.
 * Never decides what a lane shows (lanes.js, marks.js) nor what happens on a click (whoever made it).
 */

import { axis } from './axis.js';
import { drawLane, laneHeight, newLane } from './bars.js';
import { attribute, el, svg } from './dom.js';
import { Cursor } from './cursor.js';

/** Pixels above and below the window that are drawn too. */
const SPARE_PX = 240;
const MOST_PRINTED = 400;
/** Below this width names get a narrow column. */
const NARROW_PX = 620;

export class Chart {
  /** @param {{open: (entries: any[], from: Element) => void, label: string}} does */
  constructor(does) {
    this.does = does;
    this.lanes = [];
    this.tops = new Float64Array(1);
    this.made = new Map();
    this.of = new WeakMap();
    this.scale = { since: 0, until: 1, left: 0, width: 0, now: 0 };
    this.match = null;
    this.matchId = 0;
    this.printing = false;
    this.axis = svg('svg', { class: 'axis', 'aria-hidden': 'true', height: 24 });
    this.grid = svg('g', { class: 'grid', 'aria-hidden': 'true' });
    this.rows = svg('g', {});
    this.svg = svg('svg', { class: 'lanes', role: 'group', 'aria-label': does.label, 'aria-describedby': 'chart-keys' }, hatch(), this.grid, this.rows);
    this.root = el('div', { class: 'chart' }, el('div', { class: 'axis-box' }, this.axis), this.svg);
    this.cursor = new Cursor(this);
    this.svg.addEventListener('click', (event) => this.#click(event));
    this.svg.addEventListener('mouseover', (event) => this.#hint(event));
    this.signal = new AbortController();
    const { signal } = this.signal;
    let asked = false;
    addEventListener('scroll', () => {
      if (asked) return;
      asked = true;
      requestAnimationFrame(() => { asked = false; this.sync(); });
    }, { passive: true, signal });
    addEventListener('beforeprint', () => { this.printing = true; this.sync(); }, { signal });
    addEventListener('afterprint', () => { this.printing = false; this.sync(); }, { signal });
    this.sizes = new ResizeObserver(() => { if (this.root.clientWidth !== this.measured) this.#draw(); });
    this.sizes.observe(this.root);
  }

  /**
   * @param {import('./lanes.js').Lane[]} lanes
   * @param {{since: number, until: number, now: number}} time
   * @param {null|((entry: any) => boolean)} match
   */
  show(lanes, time, match) {
    this.lanes = lanes;
    Object.assign(this.scale, time);
    if (match !== this.match) this.matchId += 1;
    this.match = match;
    this.#draw();
  }

  close() {
    this.signal.abort();
    this.sizes.disconnect();
  }

  #draw() {
    this.measured = this.root.clientWidth;
    if (this.measured === 0) return;
    this.scale.left = this.measured < NARROW_PX ? 84 : 190;
    this.scale.width = Math.max(50, this.measured - this.scale.left - 1);
    if (this.tops.length !== this.lanes.length + 1) this.tops = new Float64Array(this.lanes.length + 1);
    this.index = new Map();
    this.lanes.forEach((lane, i) => {
      this.tops[i + 1] = this.tops[i] + laneHeight(lane);
      this.index.set(lane.key, i);
    });
    const total = this.tops[this.lanes.length];
    for (const drawing of [this.svg, this.axis]) drawing.setAttribute('width', String(this.measured));
    this.svg.setAttribute('height', String(total));
    axis(this.axis, this.grid, this.scale, total);
    this.sync();
  }

  /** Makes the lanes in view exist, up to date, and no others. */
  sync() {
    if (this.lanes.length === 0 || !this.root.isConnected) {
      for (const one of this.made.values()) one.g.remove();
      this.made.clear();
      return;
    }
    const top = this.svg.getBoundingClientRect().top;
    let first = Math.max(0, this.#at(-top - SPARE_PX));
    let last = Math.min(this.lanes.length, this.#at(innerHeight - top + SPARE_PX) + 1);
    if (this.printing) [first, last] = [0, Math.min(this.lanes.length, MOST_PRINTED)];
    const wanted = new Set();
    for (let i = first; i < last; i += 1) wanted.add(this.lanes[i].key);
    const focused = this.of.get(document.activeElement?.closest?.('g.lane'));
    if (focused !== undefined && this.index.has(focused)) wanted.add(focused);
    for (const [key, one] of this.made) {
      if (wanted.has(key)) continue;
      one.g.remove();
      this.made.delete(key);
    }
    for (const key of wanted) this.draw(this.index.get(key));
    this.cursor.settle(first, last);
  }

  /** Draws one lane, wherever it is. @returns {any} what `newLane` made */
  draw(i) {
    const lane = this.lanes[i];
    let one = this.made.get(lane.key);
    if (!one) {
      one = newLane(lane);
      this.made.set(lane.key, one);
      this.of.set(one.g, lane.key);
      this.rows.append(one.g);
    }
    const y = String(this.tops[i]);
    if (one.y !== y) attribute(one.g, 'transform', `translate(0 ${y})`);
    one.y = y;
    drawLane(one, lane, this.scale, this.match, this.matchId);
    return one;
  }

  /** What an element stands for: its lane, its key, and its entries ([] for a name). */
  target(element) {
    const part = element.closest?.('[data-key]');
    const key = this.of.get(part?.closest('g.lane'));
    if (key === undefined) return null;
    const item = this.made.get(key).placed.find((one) => one.key === part.dataset.key);
    return { part, lane: key, key: part.dataset.key, entries: item?.entries ?? [] };
  }

  /** Brings a lane into the window, clear of the header and the axis. */
  reveal(i) {
    const top = this.svg.getBoundingClientRect().top + this.tops[i];
    const head = this.axis.getBoundingClientRect().bottom;
    const bottom = innerHeight - 40;
    const height = this.tops[i + 1] - this.tops[i];
    if (top < head) scrollBy(0, top - head - 8);
    else if (top + height > bottom) scrollBy(0, top + height - bottom);
  }

  /** Number of the lane at this height. */
  #at(y) {
    let [low, high] = [0, this.lanes.length - 1];
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.tops[middle] <= y) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  #click(event) {
    const target = this.target(event.target);
    if (target === null || target.entries.length === 0) return;
    this.cursor.take(target);
    this.does.open(target.entries, target.part);
  }

  /** The browser's own hint, made when it is first needed: thousands would cost more than the bars. */
  #hint(event) {
    const target = this.target(event.target);
    if (target === null || target.entries.length === 0) return;
    const hint = target.part.querySelector('title') ?? target.part.appendChild(svg('title'));
    hint.textContent = target.part.getAttribute('aria-label');
  }
}

/** Stripes of what has leaked. */
function hatch() {
  return svg('defs', {}, svg('pattern', { id: 'hatch', width: 6, height: 6, patternUnits: 'userSpaceOnUse', patternTransform: 'rotate(45)' },
    svg('rect', { class: 'stripe', width: 3, height: 6 })));
}
