/**
 * Moments, spans and the ticks of an axis, in the local time of whoever reads.
 * The agent's clock is the truth: its `as_of` shifts ours, so ages are right on a laptop that is minutes off.
 * Never formats in UTC and never draws.
 */

const SECOND = 1000;
const MINUTE = 60 * SECOND;
export const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;
/** Distances between ticks that people can read. */
const STEPS = [SECOND, 5 * SECOND, 10 * SECOND, 30 * SECOND, MINUTE, 2 * MINUTE, 5 * MINUTE, 10 * MINUTE, 15 * MINUTE, 30 * MINUTE,
  HOUR, 2 * HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR, DAY, 2 * DAY, 7 * DAY];

/** How far the agent's clock is ahead of ours, in milliseconds. */
let ahead = 0;

/** @param {string|null|undefined} asOf the agent's time when it answered */
export function agentSays(asOf) {
  const at = moment(asOf);
  if (at !== null) ahead = at - Date.now();
}

/** Milliseconds since 1970 on the agent's clock. */
export function now() {
  return Date.now() + ahead;
}

/** @returns {number|null} milliseconds, or null for what is no time */
export function moment(text) {
  if (typeof text !== 'string') return null;
  const at = Date.parse(text);
  return Number.isNaN(at) ? null : at;
}

const two = (n) => String(n).padStart(2, '0');
const day = (d) => `${d.getFullYear()}-${two(d.getMonth() + 1)}-${two(d.getDate())}`;

/** `14:03:07`, with the date where it is not today. */
export function clock(at) {
  if (at === null || !Number.isFinite(at)) return 'not known';
  const d = new Date(at);
  const time = `${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}`;
  return day(d) === day(new Date(now())) ? time : `${day(d)} ${time}`;
}

/** `8m31s`, as the command line writes it: the two largest units. */
export function span(ms) {
  if (ms < SECOND && ms > 0) return `${Math.round(ms)}ms`;
  const seconds = Math.max(0, Math.floor(ms / SECOND));
  const [d, h, m, s] = [Math.floor(seconds / 86400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60, seconds % 60];
  if (d > 0) return h > 0 ? `${d}d${h}h` : `${d}d`;
  if (h > 0) return m > 0 ? `${h}h${m}m` : `${h}h`;
  if (m > 0) return s > 0 ? `${m}m${s}s` : `${m}m`;
  return `${s}s`;
}

/** `12m ago`. */
export function ago(at) {
  return at === null || !Number.isFinite(at) ? '' : `${span(now() - at)} ago`;
}

/** `local time, UTC+01:00`. */
export function zone() {
  const east = -new Date(now()).getTimezoneOffset();
  const sign = east < 0 ? '-' : '+';
  return `local time, UTC${sign}${two(Math.floor(Math.abs(east) / 60))}:${two(Math.abs(east) % 60)}`;
}

/** What an `<input type="datetime-local">` shows for a moment. */
export function inputValue(at) {
  const d = new Date(at);
  return `${day(d)}T${two(d.getHours())}:${two(d.getMinutes())}`;
}

/**
 * Ticks at round local times.
 * @param {number} since
 * @param {number} until
 * @param {number} most at most about this many
 * @returns {Array<{at: number, label: string, day: boolean}>}
 */
export function ticks(since, until, most) {
  const step = STEPS.find((s) => (until - since) / s <= most) ?? Math.ceil((until - since) / most / DAY) * DAY;
  const east = -new Date(since).getTimezoneOffset() * MINUTE;
  const found = [];
  for (let at = Math.ceil((since + east) / step) * step - east; at <= until; at += step) {
    const d = new Date(at);
    const midnight = d.getHours() === 0 && d.getMinutes() === 0 && d.getSeconds() === 0;
    const time = `${two(d.getHours())}:${two(d.getMinutes())}${step < MINUTE ? `:${two(d.getSeconds())}` : ''}`;
    found.push({ at, label: midnight ? day(d).slice(5) : time, day: midnight });
  }
  return found;
}
