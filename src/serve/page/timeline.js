/**
 * The view of ports over time. Moves along with the present as often as a pixel takes, and stands still around a chosen moment.
 * Its equivalent as a table is the view of a port, to which every lane's name links.
 */

import { legend } from './bars.js';
import { Chart } from './chart.js';
import { el, say } from './dom.js';
import { drawn } from './measure.js';
import { now } from './time.js';
import { Windowed } from './windowed.js';
import { bounds } from './windows.js';
import * as words from './words.js';

export class TimelineView extends Windowed {
  constructor(ctx) {
    super(ctx);
    this.title = 'Timeline';
    this.chart = new Chart({ label: 'Ports over time', open: (entries, from) => ctx.details.open(entries, from) });
    this.order = el('select', { id: 'order', on: { change: () => ctx.go({ order: this.order.value === 'port' ? 'port' : null }) } },
      el('option', { value: 'trouble', text: 'leaks and conflicts first' }), el('option', { value: 'port', text: 'by port' }));
    this.counts = el('p', { class: 'counts', id: 'timeline-counts' });
    this.empty = el('p', { class: 'empty', hidden: true });
    this.root = el('section', { id: 'timeline', 'aria-labelledby': 'timeline-title' }, el('h1', { class: 'unseen', id: 'timeline-title', text: 'Ports over time' }),
      this.ranges.root, el('div', { class: 'below-ranges' }, this.counts, el('label', { class: 'order' }, 'order ', this.order)), this.status,
      el('p', { class: 'unseen', id: 'chart-keys', text: 'Arrow keys move between bars and lanes, Enter opens the details. A lane\'s name leads to the same as a table.' }),
      legend(), this.chart.root, this.empty);
  }

  draw(store, chosen, begun) {
    const order = this.ctx.query().get('order') === 'port' ? 'port' : 'trouble';
    if (this.order.value !== order) this.order.value = order;
    const match = this.ctx.match();
    const time = { ...bounds(chosen), now: now() };
    const lanes = store.lanes.list({ ...time, match, order });
    this.pixelMs = chosen.at === null ? chosen.range.ms / 1000 : Infinity;
    this.drawnAt = time.now;
    this.chart.root.hidden = lanes.length === 0;
    this.empty.hidden = lanes.length > 0;
    say(this.empty, match === null ? 'No port was held and no bind was refused in this window.' : 'Nothing in this window matches the filter.');
    let [holds, conflicts] = [0, 0];
    for (const lane of lanes) [holds, conflicts] = [holds + lane.holds.size, conflicts + lane.conflicts.size];
    say(this.counts, lanes.length === 0 ? '' : `${words.many(lanes.length, 'port')}, ${words.many(holds, 'hold')}, ${words.many(conflicts, 'conflict')}`);
    this.chart.show(lanes, time, match);
    if (lanes.length > 0) drawn('timeline', begun);
  }

  tick() {
    if (this.drawnAt !== undefined && now() - this.drawnAt >= this.pixelMs) this.show();
  }

  close() {
    super.close();
    this.chart.close();
  }
}
