/**
 * What the views of a stretch of time have in common: its controls, fetching it, and saying that it is being fetched or could not be.
 * Views give `draw(store, chosen)`. Never draws holds itself.
 */

import { el, say } from './dom.js';
import { Ranges } from './ranges.js';
import { choice } from './windows.js';

export class Windowed {
  /** @param {any} ctx see app.js */
  constructor(ctx) {
    this.ctx = ctx;
    this.store = null;
    this.ranges = new Ranges({ query: () => ctx.query(), go: (change) => ctx.go(change) });
    this.status = el('p', { class: 'status', role: 'status', hidden: true });
    this.begun = performance.now();
  }

  /** The address changed: another stretch may be wanted. */
  async load() {
    this.ranges.show();
    const chosen = choice(this.ctx.query());
    const here = this.ctx.windows.isPresent(chosen);
    if (!here) this.#say('Asking the agent…');
    this.root.setAttribute('aria-busy', String(!here));
    try {
      const store = await this.ctx.windows.select(chosen);
      if (store === null || this.closed) return;
      this.store = store;
      this.#say('');
    } catch (error) {
      this.#say(`This time could not be shown: ${error instanceof Error ? error.message : error}`);
    }
    this.root.setAttribute('aria-busy', 'false');
    this.show();
    this.ctx.notices();
  }

  /** Something changed: data, filter, time. */
  show() {
    if (this.store === null || !this.store.loaded || this.closed) return;
    this.draw(this.store, choice(this.ctx.query()), Math.max(this.begun, this.ctx.dataAt()));
  }

  close() {
    this.closed = true;
  }

  #say(text) {
    say(this.status, text);
    this.status.hidden = text === '';
  }
}
