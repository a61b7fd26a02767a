/**
 * The keyboard on the timeline: the whole of it is one stop of the Tab key (roving tabindex). Left and right go to the lane's next bar or
 * mark in time, up and down to the lane above or below, at the nearest time; Home, End, Page Up and Page Down; Enter or Space opens.
 * Never draws; asks the chart to draw the lane it goes to.
 */

const PAGE = 10;

export class Cursor {
  /** @param {import('./chart.js').Chart} chart */
  constructor(chart) {
    this.chart = chart;
    this.lane = null;
    this.key = 'name';
    this.stop = null;
    chart.svg.addEventListener('keydown', (event) => this.#press(event));
    chart.svg.addEventListener('focusin', (event) => {
      const target = chart.target(event.target);
      if (target !== null) this.take(target);
    });
  }

  /** What was clicked or focused is where the keys go on. */
  take({ lane, key, part }) {
    this.lane = lane;
    this.key = key;
    this.#mark(part);
  }

  /** After a draw: keeps exactly one element that Tab reaches, in view where the old one is gone. */
  settle(first, last) {
    if (this.stop?.isConnected && this.chart.of.get(this.stop.closest('g.lane')) === this.lane) return;
    const here = this.chart.made.get(this.lane);
    if (here) {
      this.#mark(here.items.get(this.key)?.g ?? here.label);
      return;
    }
    for (let i = first; i < last; i += 1) {
      const made = this.chart.made.get(this.chart.lanes[i].key);
      if (made && this.chart.tops[i] + this.chart.svg.getBoundingClientRect().top >= 0) {
        this.#mark(made.label);
        return;
      }
    }
  }

  #mark(part) {
    if (this.stop === part) return;
    this.stop?.setAttribute('tabindex', '-1');
    part.setAttribute('tabindex', '0');
    this.stop = part;
  }

  #press(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const target = this.chart.target(event.target);
    if (target === null) return;
    const lane = this.chart.index.get(target.lane);
    const steps = { ArrowUp: -1, ArrowDown: 1, PageUp: -PAGE, PageDown: PAGE };
    if (event.key in steps) this.#climb(lane, target, steps[event.key]);
    else if (event.key === 'ArrowLeft') this.#walk(lane, target, -1);
    else if (event.key === 'ArrowRight') this.#walk(lane, target, 1);
    else if (event.key === 'Home') this.#walk(lane, target, -Infinity);
    else if (event.key === 'End') this.#walk(lane, target, Infinity);
    else if ((event.key === 'Enter' || event.key === ' ') && target.entries.length > 0) this.chart.does.open(target.entries, target.part);
    else return;
    event.preventDefault();
  }

  /** Name first, then what is on the lane by time. */
  #stops(made) {
    return ['name', ...[...made.placed].sort((a, b) => a.x - b.x).map((item) => item.key)];
  }

  #walk(lane, target, by) {
    const made = this.chart.draw(lane);
    const stops = this.#stops(made);
    const at = Math.min(stops.length - 1, Math.max(0, stops.indexOf(target.key) + by));
    this.#go(lane, made, stops[at]);
  }

  #climb(lane, target, by) {
    const to = Math.min(this.chart.lanes.length - 1, Math.max(0, lane + by));
    if (to === lane) return;
    const x = this.chart.made.get(target.lane).placed.find((item) => item.key === target.key)?.x ?? null;
    const made = this.chart.draw(to);
    let key = 'name';
    if (x !== null) {
      let nearest = Infinity;
      for (const item of made.placed) {
        const away = Math.max(0, item.x - x, x - (item.x + item.w));
        if (away < nearest) [nearest, key] = [away, item.key];
      }
    }
    this.#go(to, made, key);
  }

  #go(lane, made, key) {
    this.chart.reveal(lane);
    const part = key === 'name' ? made.label : (made.items.get(key)?.g ?? made.label);
    this.take({ lane: this.chart.lanes[lane].key, key, part });
    part.focus({ preventScroll: true });
  }
}
