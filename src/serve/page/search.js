/**
 * The filter: words that must all occur, in any order, in what a hold or a conflict says of itself.
 * A word with `-` in front must not occur. Never a regular expression: what is typed means itself.
 */

import { blocker, cause, elsewhere, endpoint, job, kind, netns, port, test, who } from './words.js';

/** Long command lines are looked into up to here. */
const MOST_COMMAND = 400;

/**
 * @param {string} query
 * @returns {null|((entry: import('./store.js').Entry) => boolean)} null: everything matches
 */
export function matcher(query) {
  const words = query.toLowerCase().split(/\s+/).filter((word) => word !== '' && word !== '-');
  if (words.length === 0) return null;
  const wanted = words.filter((word) => !word.startsWith('-'));
  const unwanted = words.filter((word) => word.startsWith('-')).map((word) => word.slice(1));
  return (entry) => {
    entry.words ??= (entry.what === 'hold' ? holdWords(entry) : conflictWords(entry)).toLowerCase();
    const text = entry.words;
    return wanted.every((word) => text.includes(word)) && !unwanted.some((word) => text.includes(word));
  };
}

function holdWords(entry) {
  const h = entry.data;
  return [port(h), endpoint(h), netns(h), who(h), kind(h), person(h.holder), jobWords(h.job), test(h.test), h.nat?.comment ?? '',
    h.nat?.to_address ?? '', entry.leaked === null ? '' : 'leaked', h.comeback ? 'came back' : '', h.end ?? ''].join(' ');
}

function conflictWords(entry) {
  const c = entry.data;
  const had = (c.blockers ?? []).map((claim) => `${blocker(claim)} ${jobWords(claim.job)} ${test(claim.test)}`);
  return [port(c), endpoint(c), elsewhere(c) || 'host', 'conflict refused', cause(c), c.loser?.comm ?? '', person(c.loser), jobWords(c.loser?.job),
    test(c.loser?.test), ...had].join(' ');
}

function person(p) {
  if (!p) return '';
  const command = Array.isArray(p.cmdline) ? p.cmdline.join(' ').slice(0, MOST_COMMAND) : '';
  return [p.pid ?? '', p.user ?? '', p.unit ?? '', typeof p.container === 'string' ? p.container : (p.container?.name ?? ''), command].join(' ');
}

function jobWords(j) {
  return j ? [j.ci ?? '', job(j), j.id ?? '', j.run ?? '', j.state ?? ''].join(' ') : '';
}
