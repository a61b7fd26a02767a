/**
 * The view of the present: every port that is held now, leaks first, with a line of figures above.
 * Never shows what has ended; the timeline and the views of ports and jobs do.
 */

import { entryKey, holdColumns, state } from './columns.js';
import { el, say } from './dom.js';
import { drawn } from './measure.js';
import { VTable } from './vtable.js';
import * as words from './words.js';

export class NowView {
  /** @param {any} ctx see app.js */
  constructor(ctx) {
    this.ctx = ctx;
    this.title = 'Now';
    const c = holdColumns((entry) => ctx.present.jobOf(entry));
    this.table = new VTable({
      id: 'now', caption: 'Ports that are held now', key: entryKey, columns: [c.state, c.port, c.address, c.netns, c.who, c.user, c.job, c.test, c.since],
      open: (entry, from) => ctx.details.open([entry], from), rank: (entry) => (entry.leaked === null ? 1 : 0),
      look: (entry) => (entry.leaked !== null ? 'leak' : ''),
    });
    this.figures = el('p', { class: 'figures', id: 'figures' });
    this.empty = el('p', { class: 'empty', hidden: true });
    this.root = el('section', { 'aria-labelledby': 'now-title' }, el('h1', { id: 'now-title', class: 'unseen', text: 'Ports that are held now' }), this.figures, this.table.root, this.empty);
    this.begun = performance.now();
  }

  show() {
    const { present } = this.ctx;
    if (!present.loaded) return;
    const begun = Math.max(this.begun, this.ctx.dataAt());
    const match = this.ctx.match();
    const open = [];
    for (const entry of present.holds.values()) if (entry.until === null) open.push(entry);
    open.sort((a, b) => (a.data.port ?? -1) - (b.data.port ?? -1) || a.id - b.id);
    const rows = match === null ? open : open.filter(match);
    this.#figures(open, rows.length, match !== null);
    this.empty.hidden = rows.length > 0;
    this.table.root.hidden = rows.length === 0;
    say(this.empty, open.length === 0 ? 'No port is held.' : 'No held port matches the filter.');
    this.table.set(rows);
    drawn('table', begun);
  }

  tick() {
    this.table.tick();
  }

  close() {
    this.table.close();
  }

  #figures(open, matching, filtered) {
    const leaks = open.filter((entry) => entry.leaked !== null).length;
    const over = open.filter((entry) => state(entry, this.ctx.present.jobOf(entry)).look === 'over').length;
    const jobs = new Set(open.filter((entry) => entry.job !== null).map((entry) => entry.job)).size;
    const conflicts = this.ctx.present.conflicts.size;
    const figure = (id, n, text, href = null) => {
      const body = [el('strong', { text: n.toLocaleString('en') }), ` ${text}`];
      return href === null ? el('span', { class: 'figure', id }, body) : el('a', { class: 'figure', id, href }, body);
    };
    const parts = [
      figure('figure-held', open.length, open.length === 1 ? 'port held' : 'ports held'), figure('figure-leaked', leaks, 'leaked', leaks > 0 ? '#/now?q=leaked' : null),
      over > 0 ? figure('figure-over', over, 'of a job that ended') : null, figure('figure-jobs', jobs, jobs === 1 ? 'job holds any' : 'jobs hold any'),
      figure('figure-conflicts', conflicts, `${conflicts === 1 ? 'bind' : 'binds'} refused in the last hour`, '#/conflicts'),
      filtered ? el('span', { class: 'quiet', text: `${words.many(matching, 'row')} shown` }) : null,
    ].filter(Boolean);
    parts[1].classList.toggle('bad', leaks > 0);
    const stamp = parts.map((p) => p.textContent).join('|');
    if (this.stamp === stamp) return; // a rebuilt link would lose the focus
    this.stamp = stamp;
    this.figures.replaceChildren(...parts);
  }
}
