/**
 * The view of refused binds: who was refused what, who had it, for which jobs, newest first. A row opens both sides and the explanation.
 */

import { conflictColumns, entryKey } from './columns.js';
import { el, say } from './dom.js';
import { inWindow } from './lanes.js';
import { drawn } from './measure.js';
import { VTable } from './vtable.js';
import { Windowed } from './windowed.js';
import { bounds } from './windows.js';
import * as words from './words.js';

export class ConflictsView extends Windowed {
  constructor(ctx) {
    super(ctx);
    this.title = 'Conflicts';
    this.table = new VTable({
      id: 'conflicts', caption: 'Binds that were refused', key: entryKey, columns: conflictColumns((entry) => (this.store ?? ctx.present).jobOf(entry)),
      open: (entry, from) => ctx.details.open([entry], from),
    });
    this.counts = el('p', { class: 'counts' });
    this.empty = el('p', { class: 'empty', hidden: true });
    this.root = el('section', { 'aria-labelledby': 'conflicts-title' }, el('h1', { class: 'unseen', id: 'conflicts-title', text: 'Binds that were refused' }),
      this.ranges.root, el('div', { class: 'below-ranges' }, this.counts), this.status, this.table.root, this.empty);
  }

  draw(store, chosen, begun) {
    const { since, until } = bounds(chosen);
    const match = this.ctx.match();
    const all = [...store.conflicts.values()].filter((entry) => inWindow(entry, since, until));
    const rows = (match === null ? all : all.filter(match)).sort((a, b) => b.from - a.from || b.id - a.id);
    say(this.counts, rows.length === 0 ? '' : words.many(rows.length, 'conflict'));
    this.empty.hidden = rows.length > 0;
    this.table.root.hidden = rows.length === 0;
    say(this.empty, all.length === 0 ? 'No conflict was seen in this window.' : 'No conflict in this window matches the filter.');
    this.table.set(rows);
    if (rows.length > 0) drawn('conflicts', begun);
  }

  tick() {
    this.table.tick();
  }

  close() {
    super.close();
    this.table.close();
  }
}
