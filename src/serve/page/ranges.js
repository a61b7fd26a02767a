/**
 * The controls of what stretch of time is shown: a range, up to now or around a chosen moment, and steps to earlier and later.
 * The choice lives in the address of the page, so that it can be handed on. Never fetches.
 */

import { el, say } from './dom.js';
import { inputValue, now, zone } from './time.js';
import { RANGES, bounds, choice } from './windows.js';

export class Ranges {
  /** @param {{query: () => URLSearchParams, go: (change: Record<string, string|null>) => void}} does `go` changes the address */
  constructor(does) {
    this.does = does;
    this.buttons = RANGES.map((range) => el('button', { type: 'button', text: range.label, data: { range: range.name },
      on: { click: () => does.go({ range: range.name }) } }));
    this.moment = el('input', { type: 'datetime-local', id: 'moment', on: { change: () => this.#around() } });
    this.later = el('button', { type: 'button', text: 'later', on: { click: () => this.#step(1) } });
    this.present = el('button', { type: 'button', id: 'to-now', text: 'to now', on: { click: () => does.go({ at: null }) } });
    this.words = el('span', { class: 'quiet window-words' });
    this.root = el('div', { class: 'ranges' },
      el('div', { class: 'group', role: 'group', 'aria-label': 'How much time' }, this.buttons),
      el('div', { class: 'group', role: 'group', 'aria-label': 'Which time' },
        el('button', { type: 'button', text: 'earlier', on: { click: () => this.#step(-1) } }), this.later, this.present),
      el('label', { class: 'around' }, 'around ', this.moment), this.words);
    this.show();
  }

  /** Brings the controls in line with the address. */
  show() {
    const chosen = choice(this.does.query());
    for (const button of this.buttons) button.setAttribute('aria-pressed', String(button.dataset.range === chosen.range.name));
    this.present.disabled = chosen.at === null;
    this.later.disabled = chosen.at === null;
    if (document.activeElement !== this.moment) this.moment.value = chosen.at === null ? '' : inputValue(chosen.at);
    say(this.words, zone());
  }

  #around() {
    const at = Date.parse(this.moment.value); // without a zone: local time
    this.does.go({ at: Number.isNaN(at) ? null : new Date(at).toISOString() });
  }

  #step(way) {
    const chosen = choice(this.does.query());
    const { since, until } = bounds(chosen);
    const at = (since + until) / 2 + (way * chosen.range.ms) / 2;
    // What would reach the present follows it.
    this.does.go({ at: at + chosen.range.ms / 2 >= now() ? null : new Date(at).toISOString() });
  }
}
