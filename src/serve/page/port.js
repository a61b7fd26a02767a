/**
 * The view of one port number: who holds it now, and all its holds and conflicts of a stretch of time, in order, in every namespace and
 * protocol. It is also what the timeline says, as a table.
 */

import { entryKey, historyColumns } from './columns.js';
import { Chart } from './chart.js';
import { el, name, say } from './dom.js';
import { inWindow } from './lanes.js';
import { jobLink } from './links.js';
import { ago, now } from './time.js';
import { VTable } from './vtable.js';
import { Windowed } from './windowed.js';
import { bounds } from './windows.js';
import * as words from './words.js';

/** The whole port's holders of the present in one sentence each, up to this many. */
const MOST_SENTENCES = 5;

export class PortView extends Windowed {
  constructor(ctx, [port]) {
    super(ctx);
    this.port = Number(port);
    this.title = `Port ${port}`;
    const open = (entries, from) => ctx.details.open(entries, from);
    this.chart = new Chart({ label: `Port ${port} over time`, open });
    this.table = new VTable({
      id: 'port-history', caption: `What happened on port ${port}, in order of time`, key: entryKey, columns: historyColumns((entry) => (this.store ?? ctx.present).jobOf(entry)),
      open: (entry, from) => open([entry], from), look: (entry) => (entry.what === 'conflict' ? 'conflict' : entry.leaked !== null ? 'leak' : ''),
    });
    this.holders = el('div', { class: 'holders', id: 'port-now' });
    this.counts = el('p', { class: 'counts' });
    this.empty = el('p', { class: 'empty', hidden: true });
    this.root = el('section', { 'aria-labelledby': 'port-title' }, el('h1', { id: 'port-title' }, 'Port ', el('bdi', { text: port })), this.holders,
      this.ranges.root, el('div', { class: 'below-ranges' }, this.counts), this.status,
      el('p', { class: 'unseen', id: 'chart-keys', text: 'Arrow keys move between bars and lanes, Enter opens the details. The table below says the same.' }),
      this.chart.root, this.table.root, this.empty);
  }

  draw(store, chosen) {
    this.#holders();
    const time = { ...bounds(chosen), now: now() };
    const match = this.ctx.match();
    const mine = (entry) => entry.data.port === this.port && inWindow(entry, time.since, time.until);
    const all = [...store.holds.values(), ...store.conflicts.values()].filter(mine);
    const rows = (match === null ? all : all.filter(match)).sort((a, b) => a.from - b.from || a.id - b.id);
    const lanes = store.lanes.list({ ...time, match: (entry) => mine(entry) && (match === null || match(entry)), order: 'port' });
    this.chart.root.hidden = lanes.length === 0;
    this.chart.show(lanes, time, match);
    this.empty.hidden = rows.length > 0;
    this.table.root.hidden = rows.length === 0;
    const holds = rows.filter((entry) => entry.what === 'hold').length;
    say(this.counts, rows.length === 0 ? '' : `${words.many(holds, 'hold')}, ${words.many(rows.length - holds, 'conflict')}`);
    say(this.empty, all.length === 0 ? 'Nobody held this port and no bind of it was refused in this window.' : 'Nothing here matches the filter.');
    this.table.set(rows);
  }

  tick() {
    this.#holders();
    this.table.tick();
  }

  close() {
    super.close();
    this.table.close();
    this.chart.close();
  }

  #holders() {
    const held = [...this.ctx.present.holds.values()].filter((entry) => entry.until === null && entry.data.port === this.port);
    const stamp = held.map((entry) => `${entry.id} ${entry.leaked} ${ago(entry.from)}`).join();
    if (this.stamp === stamp || this.holders.contains(document.activeElement)) return;
    this.stamp = stamp;
    if (held.length === 0) {
      this.holders.replaceChildren(el('p', { text: 'Nobody holds it now.' }));
      return;
    }
    const sentence = (entry) => {
      const place = words.elsewhere(entry.data);
      return el('p', {}, entry.leaked === null ? null : [el('strong', { class: 'tag leak', text: 'leaked' }), ' '], `${words.port(entry.data)} is held by `, name(words.who(entry.data), 80),
        entry.data.holder?.pid ? ` (pid ${entry.data.holder.pid})` : '', place ? [' in ', name(place, 60)] : null,
        entry.data.job ? [' for ', jobLink(this.ctx.present.jobOf(entry), 100)] : ', for no job', Number.isFinite(entry.from) ? `, since ${ago(entry.from).replace(' ago', '')}` : '');
    };
    const rest = held.length - MOST_SENTENCES;
    this.holders.replaceChildren(...held.slice(0, MOST_SENTENCES).map(sentence), rest > 0 ? el('p', { class: 'quiet', text: `and ${words.many(rest, 'more hold')}` }) : '');
  }
}
