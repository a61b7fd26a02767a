/**
 * Asks the agent, on the same origin, below the page's own address (so that it works behind a prefix, too).
 * An answer is a document or an error with the agent's own sentence. Never retries: whoever asks decides.
 */

import { agentSays } from './time.js';

/** Longer than the agent needs for its largest answer on a slow disk. */
const PATIENCE_MS = 30_000;

/** @returns {Promise<any>} */
async function ask(path, query) {
  const search = new URLSearchParams(query).toString();
  const response = await fetch(search === '' ? path : `${path}?${search}`, { signal: AbortSignal.timeout(PATIENCE_MS), cache: 'no-store' });
  const text = await response.text();
  let doc = null;
  try {
    doc = JSON.parse(text);
  } catch {
    throw new Error(`the agent's answer is no JSON (status ${response.status})`);
  }
  if (!response.ok) throw new Error(typeof doc?.error === 'string' ? doc.error : `the agent answered with status ${response.status}`);
  agentSays(doc.as_of);
  return doc;
}

/** @param {{since?: number, until?: number}} window milliseconds; neither: the last hour */
export function timeline({ since, until } = {}) {
  const query = {};
  if (since !== undefined) query.since = new Date(since).toISOString();
  if (until !== undefined) query.until = new Date(until).toISOString();
  return ask('v1/timeline', query);
}

export const report = (ci, id) => ask('v1/report', { ci, id });
export const reportHref = (ci, id) => `v1/report?${new URLSearchParams({ ci, id, format: 'html' })}`;
export const stream = () => new EventSource('v1/stream');

/** Whether the agent answers at all. */
export async function alive() {
  try {
    const response = await fetch('healthz', { signal: AbortSignal.timeout(5000), cache: 'no-store' });
    return response.ok;
  } catch {
    return false;
  }
}
