/**
 * Columns that several tables share: what stands in the cells of a hold or a conflict, by which they sort, which of them age.
 * Never knows which rows a table has.
 */

import { el, name } from './dom.js';
import { jobLink, portLink } from './links.js';
import { ago, clock, now, span } from './time.js';
import * as words from './words.js';

/** State in one word, always written and never a colour alone. */
export function state(entry, job) {
  if (entry.what === 'conflict') return { word: 'refused', look: 'conflict' };
  if (entry.leaked !== null) return { word: 'leaked', look: 'leak' };
  if (entry.until !== null) return words.wasLost(entry.data) ? { word: 'lost', look: 'lost' } : { word: 'ended', look: 'quiet' };
  if (job?.state === 'ended') return { word: 'job ended', look: 'over' };
  return { word: words.kind(entry.data).split(',')[0], look: 'fine' };
}

export const tag = ({ word, look }) => el('span', { class: `tag ${look}`, text: word });

const age = (e) => (Number.isFinite(e.from) ? span(now() - e.from) : '');

/** The button of a row that opens its details: the program. */
const opener = (text, label) => el('button', { type: 'button', class: 'open', 'aria-label': label }, name(text, 60));

/** @param {(entry: any) => any} jobOf */
export function holdColumns(jobOf) {
  return {
    state: { label: 'State', name: 'state', cell: (e) => [tag(state(e, jobOf(e)))], order: (e) => state(e, jobOf(e)).word },
    port: { label: 'Port', name: 'port', cell: (e) => [portLink(e.data)], order: (e) => e.data.port ?? -1 },
    address: { label: 'Address', name: 'address', cell: (e) => [name(e.data.address ?? '', 45)], order: (e) => e.data.address ?? '' },
    netns: { label: 'Namespace', name: 'netns', cell: (e) => [name(words.netns(e.data), 60)], order: (e) => words.netns(e.data) },
    who: {
      label: 'Program', name: 'who', order: (e) => words.who(e.data).toLowerCase(),
      cell: (e) => [opener(words.who(e.data), `Details of ${words.port(e.data)}: ${words.who(e.data).slice(0, 60)}`),
        e.data.holder?.pid ? el('span', { class: 'quiet', text: ` ${e.data.holder.pid}` }) : null],
    },
    user: { label: 'User', name: 'user', cell: (e) => [name(e.data.holder?.user ?? e.data.holder?.uid ?? '', 40)], order: (e) => e.data.holder?.user ?? '' },
    job: { label: 'Job', name: 'job', cell: (e) => [jobLink(jobOf(e)) ?? el('span', { class: 'quiet', text: 'no job' })], order: (e) => words.job(jobOf(e)).toLowerCase() },
    test: { label: 'Test', name: 'test', cell: (e) => [name(words.test(e.data.test), 80)], order: (e) => words.test(e.data.test) },
    since: {
      label: 'Since', name: 'since', cell: (e) => [el('span', { text: clock(e.from) }), ' ', el('span', { class: 'age quiet', text: age(e) })],
      order: (e) => e.from, age,
    },
    when: { label: 'From', name: 'when', cell: (e) => [clock(e.from)], order: (e) => e.from },
    until: { label: 'Until', name: 'until', cell: (e) => [e.until === null ? 'now' : clock(e.until)], order: (e) => e.until ?? Infinity },
    how: { label: 'How it ended', name: 'how', cell: (e) => [outcome(e)] },
  };
}

/** The last column of a history. */
function outcome(entry) {
  if (entry.what === 'conflict') return el('span', {}, tries(entry), `cause: ${words.cause(entry.data)}; `, had(entry.data));
  const parts = [words.end(entry.data), words.comeback(entry.data)].filter((text) => text !== '');
  return el('span', { text: parts.join('; ') || 'goes on' });
}

const tries = (entry) => (entry.data.attempts > 1 ? `${entry.data.attempts} attempts; ` : '');

/** Who had it. */
function had(c) {
  const names = (c.blockers ?? []).map(words.blocker);
  return el('span', {}, names.length === 0 ? 'nobody was seen to have it' : 'held by ', names.length === 0 ? null : name(names.join(', '), 90));
}

/** @param {(entry: any) => any} jobOf */
export function conflictColumns(jobOf) {
  return [
    { label: 'When', name: 'when', order: (e) => e.from, age: (e) => ago(e.from), cell: (e) => [el('span', { text: clock(e.from) }), ' ', el('span', { class: 'age quiet', text: ago(e.from) })] },
    { label: 'Port', name: 'port', order: (e) => e.data.port ?? -1, cell: (e) => [portLink(e.data)] },
    {
      label: 'Refused', name: 'who', order: (e) => words.program(e.data.loser).toLowerCase(),
      cell: (e) => [opener(words.program(e.data.loser), `Details: ${words.port(e.data)} refused to ${words.program(e.data.loser).slice(0, 60)}`),
        el('span', { class: 'quiet', text: e.data.attempts > 1 ? ` ${e.data.attempts} times` : '' })],
    },
    { label: 'Its job', name: 'job', order: (e) => words.job(jobOf(e)).toLowerCase(), cell: (e) => [jobLink(jobOf(e)) ?? el('span', { class: 'quiet', text: 'no job' })] },
    { label: 'Who had it', name: 'had', cell: (e) => [el('span', {}, (e.data.blockers ?? []).length === 0 ? 'nobody was seen to' : name(e.data.blockers.map(words.blocker).join(', '), 90))] },
    { label: 'For the job', name: 'job', cell: (e) => [jobLink((e.data.blockers ?? []).find((b) => b.job)?.job) ?? el('span', { class: 'quiet', text: 'no job' })] },
    { label: 'Cause', name: 'cause', order: (e) => words.cause(e.data), cell: (e) => [tag({ word: words.cause(e.data), look: 'cause' })] },
  ];
}

/** Holds and conflicts together, by time. */
export function historyColumns(jobOf) {
  const c = holdColumns(jobOf);
  const who = {
    ...c.who, label: 'Who', order: (e) => (e.what === 'hold' ? words.who(e.data) : words.program(e.data.loser)).toLowerCase(),
    cell: (e) => (e.what === 'hold' ? c.who.cell(e) : conflictColumns(jobOf)[2].cell({ ...e, data: { ...e.data, attempts: 1 } })),
  };
  return [c.when, c.until, c.state, c.port, c.address, c.netns, who, c.job, c.how];
}

export const entryKey = (entry) => `${entry.what === 'hold' ? 'h' : 'c'}${entry.id}`;
