/**
 * Lanes of the timeline: one for each port, protocol and network namespace, kept up to date one entry at a time.
 * Which lanes a window shows, in what order, and how many rows each needs where holds overlap. Pure: no document, no clock.
 */

/** Holds of one port at one moment that are drawn beside each other; more share the last row. */
export const MOST_ROWS = 4;

/**
 * @typedef {object} Lane
 * @property {string} key
 * @property {any} sample what names its port, protocol and namespace
 * @property {Map<number, import('./store.js').Entry>} holds
 * @property {Map<number, import('./store.js').Entry>} conflicts
 * @property {import('./store.js').Entry[]|null} sorted holds by their begin, with rows given; null: to be done
 * @property {number} rows
 * @property {number} version changes whenever something in it does
 */

export class Lanes {
  constructor() {
    /** @type {Map<string, Lane>} */ this.byKey = new Map();
  }

  put(entry) {
    let lane = this.byKey.get(entry.lane);
    if (!lane) {
      lane = { key: entry.lane, sample: entry.data, holds: new Map(), conflicts: new Map(), sorted: null, rows: 1, version: 0 };
      this.byKey.set(entry.lane, lane);
    }
    (entry.what === 'hold' ? lane.holds : lane.conflicts).set(entry.id, entry);
    touch(lane);
  }

  drop(entry) {
    const lane = this.byKey.get(entry.lane);
    if (!lane) return;
    (entry.what === 'hold' ? lane.holds : lane.conflicts).delete(entry.id);
    touch(lane);
    if (lane.holds.size === 0 && lane.conflicts.size === 0) this.byKey.delete(lane.key);
  }

  /**
   * Lanes with something in the window that the filter matches.
   * @param {{since: number, until: number, match: null|((entry: any) => boolean), order: 'trouble'|'port'}} wanted
   * @returns {Lane[]}
   */
  list({ since, until, match, order }) {
    const found = [];
    for (const lane of this.byKey.values()) {
      const seen = judge(lane, since, until, match);
      if (seen !== null) found.push({ lane, rank: order === 'trouble' && seen.trouble ? 0 : 1 });
    }
    found.sort((a, b) => a.rank - b.rank || compare(a.lane.sample, b.lane.sample));
    return found.map(({ lane }) => {
      if (lane.sorted === null) pack(lane);
      return lane;
    });
  }
}

export const inWindow = (entry, since, until) => entry.from <= until && (entry.until === null || entry.until >= since);

/** @returns {{trouble: boolean}|null} null: nothing to show */
function judge(lane, since, until, match) {
  let [hit, trouble] = [false, false];
  for (const table of [lane.conflicts, lane.holds]) {
    for (const entry of table.values()) {
      if (!inWindow(entry, since, until)) continue;
      if (!hit) hit = match === null || match(entry);
      if (!trouble) trouble = entry.what === 'conflict' || entry.leaked !== null;
      if (hit && trouble) return { trouble };
    }
  }
  return hit ? { trouble } : null;
}

function compare(a, b) {
  return (a.port ?? -1) - (b.port ?? -1) || String(a.protocol).localeCompare(String(b.protocol)) ||
    (a.netns?.name === 'host' ? -1 : 0) - (b.netns?.name === 'host' ? -1 : 0) || (a.netns?.inode ?? 0) - (b.netns?.inode ?? 0);
}

function touch(lane) {
  lane.sorted = null;
  lane.version += 1;
}

/** Gives each hold the first row that is free when it begins. */
function pack(lane) {
  lane.sorted = [...lane.holds.values()].sort((a, b) => (a.from === b.from ? a.id - b.id : a.from - b.from));
  const ends = [];
  for (const entry of lane.sorted) {
    let row = ends.findIndex((until) => until <= entry.from);
    if (row < 0) row = Math.min(ends.length, MOST_ROWS - 1);
    entry.row = row;
    ends[row] = Math.max(ends[row] ?? -Infinity, entry.until ?? Infinity);
  }
  lane.rows = Math.max(1, ends.length);
}
