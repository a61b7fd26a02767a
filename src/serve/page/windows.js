/**
 * Which stretch of time is looked at, and the store that has it. The last hour is always here (views of the present live on it); any
 * other stretch is fetched when it is chosen and followed by the same events.
 * Never mixes the two: a long window may be cut by the agent's limit, and the present must not be.
 */

import { timeline } from './api.js';
import { inWindow } from './lanes.js';
import { Store } from './store.js';
import { HOUR, moment, now } from './time.js';

export const RANGES = [
  { name: '15m', label: '15 min', ms: HOUR / 4 }, { name: '1h', label: '1 h', ms: HOUR }, { name: '6h', label: '6 h', ms: 6 * HOUR },
  { name: '24h', label: '24 h', ms: 24 * HOUR }, { name: '7d', label: '7 d', ms: 168 * HOUR },
];
/** What the agent tells without being asked for more. */
export const PRESENT_MS = HOUR;
const FIRST = RANGES[1];

/** @typedef {{range: {name: string, label: string, ms: number}, at: number|null}} Choice at: middle of the window; null: until now */

/** @returns {Choice} from the address of the page */
export function choice(query) {
  const range = RANGES.find((r) => r.name === query.get('range')) ?? FIRST;
  return { range, at: moment(query.get('at')) };
}

/** @param {Choice} chosen */
export function bounds({ range, at }) {
  if (at !== null) return { since: at - range.ms / 2, until: at + range.ms / 2 };
  // A little room on the right keeps the ends of what goes on now apart from the edge.
  const until = now() + range.ms / 80;
  return { since: until - range.ms, until };
}

export class Windows {
  /** @param {Store} present */
  constructor(present) {
    this.present = present;
    this.other = new Store();
    this.chosen = null; // what `other` holds
    this.turn = 0;
  }

  /** Whether the last hour's store has all of it. */
  isPresent({ range, at }) {
    return at === null && range.ms <= PRESENT_MS;
  }

  /**
   * The store for a stretch; fetches it unless it is here. Null when another stretch was chosen meanwhile.
   * @param {Choice} chosen
   * @returns {Promise<Store|null>}
   */
  async select(chosen) {
    this.turn += 1;
    if (this.isPresent(chosen)) {
      this.leave();
      return this.present;
    }
    if (this.chosen && this.chosen.range === chosen.range && this.chosen.at === chosen.at) return this.other;
    return this.#fetch(chosen, this.turn);
  }

  /** Fetches again what is followed; after a gap in the stream. */
  async reload() {
    if (this.chosen !== null) await this.#fetch(this.chosen, this.turn);
  }

  /** Lets the other stretch go: it may be large. */
  leave() {
    this.chosen = null;
    if (this.other.loaded) this.other = new Store();
  }

  /** Applies an event to every store that it concerns. @returns {Array<any>} what each put, for who wants to know the new ones */
  apply(kind, data) {
    const stores = this.chosen === null ? [this.present] : [this.present, this.other];
    return stores.map((store) => {
      if (kind === 'job') return store.putJob(data);
      const put = kind === 'hold' ? store.putHold(data) : store.putConflict(data);
      if (store === this.other) {
        const { since, until } = bounds(this.chosen);
        if (!inWindow(put.entry, since, until)) {
          (kind === 'hold' ? store.holds : store.conflicts).delete(put.entry.id);
          store.lanes.drop(put.entry);
        }
      }
      return put;
    });
  }

  /** Forgets what has left the windows that follow the present. */
  prune() {
    this.present.prune(now() - PRESENT_MS);
    if (this.chosen !== null && this.chosen.at === null) this.other.prune(bounds(this.chosen).since);
  }

  async #fetch(chosen, turn) {
    const { since, until } = bounds(chosen);
    const doc = await timeline({ since, until: Math.min(until, now()) });
    if (turn !== this.turn) return null;
    performance.mark('data');
    this.other.replace(doc);
    this.chosen = chosen;
    return this.other;
  }
}
