/**
 * Where the bars and marks of a lane stand: moments to pixels. What would be too small to see or to point at is merged into one that says
 * how many it stands for, so that a lane costs what its width costs, however many holds it has. Pure: no document.
 */

import { MOST_ROWS, inWindow } from './lanes.js';

/** Narrower bars are merged with their neighbours. */
const SMALL_PX = 4;
/** A bar is never narrower. */
const LEAST_PX = 2;
/** Conflicts nearer than a mark's width are one mark with a number. */
export const MARK_PX = 11;

/**
 * @typedef {object} Scale
 * @property {number} since
 * @property {number} until
 * @property {number} left pixels of the names' column
 * @property {number} width pixels of the time
 * @property {number} now
 */

/** @typedef {{key: string, what: 'hold'|'conflict', entries: any[], x: number, w: number, row: number, leak: number|null}} Item */

export const pixel = (scale, at) => ((at - scale.since) / (scale.until - scale.since)) * scale.width;

/**
 * Bars first, then marks; each by time.
 * @param {import('./lanes.js').Lane} lane
 * @param {Scale} scale
 * @returns {Item[]}
 */
export function place(lane, scale) {
  const items = [];
  const last = [];
  for (const entry of lane.sorted ?? []) {
    if (!inWindow(entry, scale.since, scale.until)) continue;
    const x = Math.max(0, pixel(scale, entry.from));
    const end = Math.min(scale.width, pixel(scale, entry.until ?? Math.max(scale.now, entry.from)));
    const w = Math.max(LEAST_PX, end - x);
    const leak = entry.leaked === null ? null : Math.min(Math.max(x, pixel(scale, entry.leaked)), x + w);
    const before = last[entry.row];
    if (before && joins(before, x, w, entry.row)) {
      before.entries.push(entry);
      before.w = Math.max(before.w, x + w - before.x);
      before.leak = before.leak === null ? leak : before.leak;
      continue;
    }
    const item = { key: `h${entry.id}`, what: 'hold', entries: [entry], x, w, row: entry.row, leak, small: w < SMALL_PX };
    last[entry.row] = item;
    items.push(item);
  }
  return items.concat(conflictMarks(lane, scale));
}

function joins(before, x, w, row) {
  const gap = x - (before.x + before.w);
  // In the last row stand all that found no row of their own: there they may overlap.
  if (row === MOST_ROWS - 1 && gap < -LEAST_PX) return true;
  return before.small && w < SMALL_PX && gap < LEAST_PX;
}

function conflictMarks(lane, scale) {
  const marks = [];
  const conflicts = [...lane.conflicts.values()].sort((a, b) => a.from - b.from);
  for (const entry of conflicts) {
    if (!inWindow(entry, scale.since, scale.until)) continue;
    const x = Math.min(Math.max(0, pixel(scale, entry.from)), scale.width);
    const end = Math.min(scale.width, pixel(scale, entry.until));
    const before = marks.at(-1);
    if (before && x - before.x < MARK_PX) {
      before.entries.push(entry);
      before.w = Math.max(before.w, end - before.x);
    } else {
      marks.push({ key: `c${entry.id}`, what: 'conflict', entries: [entry], x, w: Math.max(0, end - x), row: 0, leak: null });
    }
  }
  return marks;
}
