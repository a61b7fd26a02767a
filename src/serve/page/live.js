/**
 * The stream of events, and what is known about it: live, reconnecting, or no answer.
 * After every (re)open the whole is fetched again; events that arrive meanwhile wait and are applied on top, in their order, so that
 * nothing between answer and stream is lost. Never shows anything and never changes the store itself.
 */

import { alive, stream } from './api.js';

/** A stream that is away for longer counts as no answer. */
const GIVE_UP_MS = 6_000;
/** Keep-alives are comments, which a page cannot see: silence of this length is checked by a question. */
const SILENCE_MS = 40_000;
/** Between two attempts of ours, where the browser has given up. */
const RETRY_MS = 3_000;
/** An agent that says "lagged" again and again is asked for the whole at most this often. */
const RELOAD_MS = 2_000;

/** A stream that does not open (an agent with no place for one more) keeps nobody from the first answer for longer. */
const FIRST_MS = 1_500;

const KINDS = ['hold', 'conflict', 'job'];

export class Live {
  /**
   * @param {{load: () => Promise<void>, apply: (kind: string, data: any) => void, state: (state: string, why?: string) => void}} does
   */
  constructor(does) {
    this.does = does;
    this.source = null;
    this.waiting = null; // events while the whole is being fetched
    this.again = false;
    this.away = null;
    this.retry = null;
    this.heard = 0;
    this.loadedAt = -Infinity;
    setTimeout(() => { if (this.loadedAt === -Infinity) this.reload(); }, FIRST_MS);
    setInterval(() => this.#check(), SILENCE_MS / 4);
  }

  start() {
    this.source?.close();
    this.source = stream();
    this.source.onopen = () => {
      this.#hear();
      this.reload();
    };
    this.source.onerror = () => this.#lost();
    for (const kind of KINDS) this.source.addEventListener(kind, (event) => this.#take(kind, event.data));
    this.source.addEventListener('lagged', () => {
      this.#hear();
      this.reload();
    });
  }

  /** Fetches the whole; one at a time, and once more if asked for meanwhile. */
  async reload() {
    if (this.waiting !== null) {
      this.again = true;
      return;
    }
    clearTimeout(this.retry);
    this.waiting = [];
    const rest = this.loadedAt + RELOAD_MS - performance.now();
    if (rest > 0) await new Promise((done) => { setTimeout(done, rest); });
    this.loadedAt = performance.now();
    let failed = null;
    try {
      await this.does.load();
    } catch (error) {
      failed = error;
    }
    const waited = this.waiting;
    this.waiting = null;
    if (failed === null) for (const [kind, data] of waited) this.does.apply(kind, data);
    else this.#failed(failed);
    if (failed === null && this.source?.readyState === EventSource.OPEN) this.does.state('live');
    if (this.again) {
      this.again = false;
      this.reload();
    }
  }

  #take(kind, text) {
    this.#hear();
    let data = null;
    try {
      data = JSON.parse(text);
    } catch {
      this.reload(); // half an event: the whole will tell
      return;
    }
    if (data === null || typeof data !== 'object') return;
    if (this.waiting !== null) this.waiting.push([kind, data]);
    else this.does.apply(kind, data);
  }

  #hear() {
    this.heard = performance.now();
    clearTimeout(this.away);
    this.away = null;
  }

  #lost() {
    if (this.away === null) {
      this.does.state('reconnecting');
      this.away = setTimeout(() => this.does.state('silent'), GIVE_UP_MS);
    }
    // A refusal (a status, not a broken connection) makes the browser stop for good.
    if (this.source.readyState === EventSource.CLOSED) setTimeout(() => this.start(), RETRY_MS);
  }

  #failed(error) {
    this.does.state('silent', error instanceof Error ? error.message : String(error));
    this.retry = setTimeout(() => this.reload(), RETRY_MS);
  }

  async #check() {
    if (this.source?.readyState !== EventSource.OPEN || performance.now() - this.heard < SILENCE_MS) return;
    if (await alive()) {
      this.heard = performance.now();
      return;
    }
    this.does.state('silent');
    this.start();
  }
}
