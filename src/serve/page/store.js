/**
 * What is known, keyed by id: holds, conflicts, jobs, as the agent sent them, with their moments parsed once.
 * A value that comes again replaces the one before. Knows nothing of views; tells nobody, the caller does.
 * Never keeps more than its window: a page that stays open for days must not grow.
 */

import { Lanes } from './lanes.js';
import { moment } from './time.js';

/**
 * @typedef {object} Entry
 * @property {'hold'|'conflict'} what
 * @property {number|string} id
 * @property {any} data as the agent sent it
 * @property {number} from milliseconds; -Infinity where it is not known
 * @property {number|null} until null while it goes on
 * @property {number|null} leaked since when it counts as leaked
 * @property {string} lane
 * @property {string|null} job
 * @property {string|null} words what the filter looks into, made when first asked
 * @property {number} row in its lane
 */

/** One key for a job; neither half can contain the separator of the other's making. */
export const jobKey = (job) => (job ? JSON.stringify([job.ci ?? null, job.id ?? null]) : null);

const laneKey = (x) => `${x.port ?? -1} ${x.protocol ?? ''} ${x.netns?.inode ?? ''} ${x.netns?.name ?? ''}`;

/** @returns {Entry} */
function holdEntry(data) {
  return {
    what: 'hold', id: data.id, data, from: moment(data.from) ?? -Infinity, until: moment(data.until), leaked: moment(data.leaked_at),
    lane: laneKey(data), job: jobKey(data.job), words: null, row: 0,
  };
}

/** @returns {Entry} */
function conflictEntry(data) {
  const from = moment(data.at) ?? moment(data.last_at) ?? -Infinity;
  return {
    what: 'conflict', id: data.id, data, from, until: moment(data.last_at) ?? from, leaked: null,
    lane: laneKey(data), job: jobKey(data.loser?.job), words: null, row: 0,
  };
}

export class Store {
  constructor() {
    /** @type {Map<number, Entry>} */ this.holds = new Map();
    /** @type {Map<number, Entry>} */ this.conflicts = new Map();
    /** @type {Map<string, any>} */ this.jobs = new Map();
    this.lanes = new Lanes();
    this.truncated = false;
    this.incomplete = [];
    this.history = null;
    this.loaded = false;
  }

  /** Takes over a whole answer of the agent in place of all that was here. */
  replace(doc) {
    this.holds.clear();
    this.conflicts.clear();
    this.jobs.clear();
    this.lanes = new Lanes();
    for (const hold of doc.holds ?? []) this.putHold(hold);
    for (const conflict of doc.conflicts ?? []) this.putConflict(conflict);
    for (const job of doc.jobs ?? []) this.putJob(job);
    this.truncated = doc.truncated === true;
    this.incomplete = Array.isArray(doc.incomplete) ? doc.incomplete : [];
    this.history = doc.history ?? null;
    this.loaded = true;
  }

  /** @returns {{entry: Entry, before: Entry|undefined}} */
  putHold(data) {
    return this.#put(this.holds, holdEntry(data));
  }

  /** @returns {{entry: Entry, before: Entry|undefined}} */
  putConflict(data) {
    return this.#put(this.conflicts, conflictEntry(data));
  }

  putJob(job) {
    if (job) this.jobs.set(jobKey(job), job);
  }

  /** The newest that is known of the job: an ended hold carries it as it was when the hold ended. */
  jobOf(entry) {
    const own = entry.what === 'hold' ? entry.data.job : entry.data.loser?.job;
    return this.jobs.get(entry.job) ?? own ?? null;
  }

  /** Forgets what ended before the moment. Returns how many. */
  prune(since) {
    let gone = 0;
    for (const table of [this.holds, this.conflicts]) {
      for (const [id, entry] of table) {
        if (entry.until === null || entry.until >= since) continue;
        table.delete(id);
        this.lanes.drop(entry);
        gone += 1;
      }
    }
    if (gone > 0) {
      const needed = new Set([...this.holds.values(), ...this.conflicts.values()].map((entry) => entry.job));
      for (const [key, job] of this.jobs) if (!needed.has(key) && job.state === 'ended') this.jobs.delete(key);
    }
    return gone;
  }

  #put(table, entry) {
    const before = table.get(entry.id);
    if (before) this.lanes.drop(before);
    table.set(entry.id, entry);
    this.lanes.put(entry);
    return { entry, before };
  }
}
