/**
 * A real table of which only the rows near the window exist; room above and below stands for the others (aria-rowcount and
 * aria-rowindex tell how many there are). Rows are reused by key, so that events change only what they concern.
 * Never knows what its rows mean: columns fill the cells.
 */

import { append, el, say } from './dom.js';
import { sorted } from './order.js';

/** Rows beyond the window's edges, so that the next Tab or a fling finds some. */
const SPARE = 12;
/** A printed page has no window; more rows than this are not printed. */
const MOST_PRINTED = 2000;

/**
 * @typedef {object} Column
 * @property {string} label
 * @property {string} name class of its cells and its width's name in the style sheet
 * @property {(row: any) => Array<any>} cell
 * @property {(row: any) => string|number} [order] sorts by it
 * @property {(row: any) => string} [age] text of the element with class `age`, which changes by itself
 */

export class VTable {
  /** @param {{id: string, caption: string, columns: Column[], key: (row: any) => string, open: (row: any, from: Element) => void, look?: (row: any) => string, rank?: (row: any) => number}} does */
  constructor(does) {
    this.does = does;
    this.rows = [];
    this.given = [];
    this.by = null;
    this.shown = new Map();
    this.heights = [0, 0];
    this.printing = false;
    this.caption = el('caption', { class: 'unseen', text: does.caption });
    this.heads = does.columns.map((column) => this.#head(column));
    this.above = el('td', { colspan: does.columns.length });
    this.below = el('td', { colspan: does.columns.length });
    this.body = el('tbody', { role: 'rowgroup', on: { click: (e) => this.#click(e), keydown: (e) => this.#key(e) } });
    this.root = el('table', { class: 'vt', id: does.id, role: 'table' }, this.caption,
      el('thead', { role: 'rowgroup' }, el('tr', { role: 'row', 'aria-rowindex': 1 }, this.heads)),
      el('tbody', { class: 'room', 'aria-hidden': 'true' }, el('tr', {}, this.above)), this.body,
      el('tbody', { class: 'room', 'aria-hidden': 'true' }, el('tr', {}, this.below)));
    this.signal = new AbortController();
    const { signal } = this.signal;
    let asked = false;
    const later = () => {
      if (asked) return;
      asked = true;
      requestAnimationFrame(() => { asked = false; this.sync(); });
    };
    addEventListener('scroll', later, { passive: true, signal });
    addEventListener('resize', later, { passive: true, signal });
    addEventListener('beforeprint', () => { this.printing = true; this.sync(); }, { signal });
    addEventListener('afterprint', () => { this.printing = false; this.sync(); }, { signal });
  }

  /** Shows these rows; those with the same key and value stay as they are. */
  set(rows) {
    this.given = rows;
    this.rows = sorted(rows, this.by, this.does.rank);
    this.root.setAttribute('aria-rowcount', String(rows.length + 1));
    this.sync();
  }

  /** Brings ages up to date. */
  tick() {
    for (const { tr, row } of this.shown.values()) {
      this.does.columns.forEach((column, i) => {
        const age = column.age ? tr.cells[i].querySelector('.age') : null;
        if (age) say(age, column.age(row));
      });
    }
  }

  close() {
    this.signal.abort();
  }

  /** Makes the rows in view exist, and no others. */
  sync() {
    if (!this.root.isConnected) return;
    const height = this.#rowHeight();
    const top = this.above.getBoundingClientRect().top;
    let first = Math.max(0, Math.floor(-top / height) - SPARE);
    let last = Math.min(this.rows.length, Math.ceil((innerHeight - top) / height) + SPARE);
    if (this.printing) [first, last] = [0, Math.min(this.rows.length, MOST_PRINTED)];
    if (last < first) first = last;
    const wanted = new Map();
    for (let i = first; i < last; i += 1) wanted.set(this.does.key(this.rows[i]), i);
    for (const [key, { tr }] of this.shown) {
      if (wanted.has(key)) continue;
      tr.remove();
      this.shown.delete(key);
    }
    let place = this.body.firstChild;
    for (const [key, i] of wanted) {
      const tr = this.#row(key, this.rows[i], i);
      if (tr === place) place = place.nextSibling;
      else this.body.insertBefore(tr, place);
    }
    this.above.style.height = `${first * height}px`;
    this.below.style.height = `${(this.rows.length - last) * height}px`;
  }

  #row(key, row, index) {
    let one = this.shown.get(key);
    if (!one || one.row !== row) {
      const tr = one?.tr ?? el('tr', { role: 'row', data: { key } });
      const focused = one && tr.contains(document.activeElement) ? [...controls(tr)].indexOf(document.activeElement) : -1;
      tr.replaceChildren(...this.does.columns.map((column) => append(
        el('td', { role: 'cell', class: `c-${column.name}`, data: { label: column.label } }), ...column.cell(row))));
      tr.className = this.does.look?.(row) ?? '';
      if (focused >= 0) controls(tr)[focused]?.focus();
      one = { tr, row };
      this.shown.set(key, one);
    }
    const number = String(index + 2);
    if (one.tr.getAttribute('aria-rowindex') !== number) one.tr.setAttribute('aria-rowindex', number);
    return one.tr;
  }

  #head(column) {
    const th = el('th', { scope: 'col', role: 'columnheader', class: `c-${column.name}` });
    if (!column.order) return append(th, column.label);
    const button = el('button', { type: 'button', text: column.label, on: { click: () => this.#sort(column) } });
    th.setAttribute('aria-sort', 'none');
    return append(th, button);
  }

  #sort(column) {
    if (this.by?.column !== column) this.by = { column, down: false };
    else this.by = this.by.down ? null : { column, down: true };
    this.does.columns.forEach((c, i) => {
      if (c.order) this.heads[i].setAttribute('aria-sort', this.by?.column === c ? (this.by.down ? 'descending' : 'ascending') : 'none');
    });
    this.set(this.given);
  }

  /** Rows are of one height, which the style sheet says; it changes with the width of the window only. */
  #rowHeight() {
    if (this.heights[0] !== innerWidth) this.heights = [innerWidth, parseFloat(getComputedStyle(this.root).getPropertyValue('--row')) || 32];
    return this.heights[1];
  }

  #click(event) {
    const tr = event.target.closest('tr');
    const link = event.target.closest('a');
    const row = tr && this.shown.get(tr.dataset.key)?.row;
    // Marking text with the mouse is no wish to open anything.
    if (!row || link || String(getSelection()) !== '') return;
    this.does.open(row, tr.querySelector('button.open') ?? tr);
  }

  /** Up and down go to the same control of the next row. */
  #key(event) {
    if (event.key !== 'ArrowDown' && event.key !== 'ArrowUp') return;
    const tr = event.target.closest('tr');
    const next = event.key === 'ArrowDown' ? tr?.nextElementSibling : tr?.previousElementSibling;
    if (!next) return;
    event.preventDefault();
    const at = [...controls(tr)].findIndex((c) => c === document.activeElement);
    const targets = controls(next);
    (targets[Math.min(at, targets.length - 1)] ?? targets[0])?.focus();
  }
}

const controls = (tr) => tr.querySelectorAll('a, button');
