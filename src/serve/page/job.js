/**
 * The view of one job: the agent's report of it, with the evidence as a file to keep and the way to the job's own page.
 * Fetched again, at most every second, when an event concerns the job. Never computes a verdict: sentences come from the agent.
 */

import { report, reportHref } from './api.js';
import { jobClass } from './colour.js';
import { entryKey, historyColumns } from './columns.js';
import { el, name, say, short } from './dom.js';
import { webLink } from './links.js';
import { Store, jobKey } from './store.js';
import { VTable } from './vtable.js';
import * as words from './words.js';

const REST_MS = 1000;

export class JobView {
  constructor(ctx, [ci, id]) {
    Object.assign(this, { ctx, ci, id, key: jobKey({ ci, id }) });
    this.title = `Job ${short(id, 60)}`;
    this.store = new Store();
    this.heading = el('h1', { id: 'job-title' });
    this.facts = el('div', { class: 'job-facts' });
    this.summary = el('ul', { class: 'summary', id: 'job-summary' });
    this.status = el('p', { class: 'status', role: 'status' });
    this.missing = el('ul', { class: 'notices', hidden: true });
    this.parts = [
      this.#part('job-leaks', 'What it left behind', 'It left no leaked listener behind.'), this.#part('job-conflicts', 'Refused binds', 'None of its binds was refused, and it was in nobody\'s way, as far as was seen.'),
      this.#part('job-lost', 'Listeners it lost', 'It lost no listener.'), this.#part('job-holds', 'Ports it held', 'No port of this job was seen.'),
    ];
    this.root = el('section', { class: 'report', 'aria-labelledby': 'job-title' }, this.heading, this.facts, this.status, this.missing, this.summary, ...this.parts.map((part) => part.root));
  }

  async load() {
    say(this.status, 'Asking the agent…');
    await this.#fetch();
  }

  show() {
    if (!this.doc) return;
    const match = this.ctx.match();
    this.lists.forEach((rows, i) => {
      const shown = match === null ? rows : rows.filter(match);
      const part = this.parts[i];
      part.table.root.hidden = shown.length === 0;
      part.empty.hidden = shown.length > 0;
      say(part.empty, rows.length > 0 ? 'Nothing here matches the filter.' : part.none);
      say(part.count, rows.length > 0 ? ` ${rows.length.toLocaleString('en')}` : '');
      part.table.set(shown);
    });
  }

  /** An event: is it about this job? */
  concerns(kind, data) {
    const jobs = kind === 'job' ? [data] : kind === 'hold' ? [data.job] : [data.loser?.job, ...(data.blockers ?? []).map((claim) => claim.job)];
    if (!jobs.some((job) => job && jobKey(job) === this.key) || this.timer !== undefined) return;
    this.timer = setTimeout(() => {
      this.timer = undefined;
      this.#fetch();
    }, REST_MS);
  }

  /** After a gap in the stream. */
  refresh() {
    this.#fetch();
  }

  tick() {
    for (const part of this.parts) part.table.tick();
    if (this.doc) this.#head(this.doc);
  }

  close() {
    this.closed = true;
    clearTimeout(this.timer);
    for (const part of this.parts) part.table.close();
  }

  async #fetch() {
    try {
      const doc = await report(this.ci, this.id);
      if (this.closed) return;
      this.doc = doc;
      this.store = new Store();
      if (doc.job) this.store.putJob(doc.job);
      const entries = (list, put) => (Array.isArray(list) ? list : []).map((data) => put.call(this.store, data).entry);
      const { putHold, putConflict } = this.store;
      this.lists = [entries(doc.leaks, putHold), entries(doc.conflicts, putConflict), entries(doc.lost, putHold), entries(doc.holds, putHold)];
      say(this.status, doc.job ? '' : 'The agent does not know this job, or not any more.');
      this.#head(doc);
      this.show();
    } catch (error) {
      if (!this.closed) say(this.status, `The report could not be fetched: ${error instanceof Error ? error.message : error}`);
    }
    this.status.hidden = this.status.textContent === '';
  }

  #head(doc) {
    const stamp = JSON.stringify([doc.job, doc.summary, doc.incomplete, doc.job ? words.jobState(doc.job) : '']);
    if (this.stamp === stamp || this.facts.contains(document.activeElement)) return;
    this.stamp = stamp;
    const { job } = doc;
    this.heading.replaceChildren(el('span', { class: `swatch ${jobClass(this.key)}`, 'aria-hidden': 'true' }), name(job ? words.job(job) : this.id, 160));
    const line = job ? [job.ci, job.run ? `run ${short(job.run, 80)}` : null, words.jobState(job)].filter(Boolean).join(', ') : this.ci;
    this.facts.replaceChildren(el('p', { text: line }), job?.url ? el('p', {}, webLink(job.url)) : '',
      el('p', {}, el('a', { id: 'evidence', class: 'action', href: reportHref(this.ci, this.id), download: '', text: 'Evidence as a file (HTML)' })));
    this.summary.replaceChildren(...(doc.summary ?? []).map((text) => el('li', { text: short(text, 2000) })));
    this.missing.replaceChildren(...(doc.incomplete ?? []).map((text) => el('li', { class: 'notice', text: short(text, 500) })));
    this.missing.hidden = this.missing.childElementCount === 0;
  }

  #part(id, title, none) {
    const table = new VTable({
      id, caption: title, key: entryKey, columns: historyColumns((entry) => this.store.jobOf(entry)), open: (entry, from) => this.ctx.details.open([entry], from),
      look: (entry) => (entry.what === 'conflict' ? 'conflict' : entry.leaked !== null ? 'leak' : ''),
    });
    table.root.hidden = true;
    const empty = el('p', { class: 'quiet', hidden: true });
    const count = el('span', { class: 'quiet' });
    const root = el('section', { 'aria-labelledby': `${id}-title` }, el('h2', { id: `${id}-title` }, title, count), table.root, empty);
    return { root, table, empty, count, none };
  }
}
