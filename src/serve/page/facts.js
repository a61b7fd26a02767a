/**
 * What is known of one hold, one conflict or several, as elements: both sides of a conflict, the process with its command and its
 * ancestors, job, test, how it ended. Facts that are null are left out; nothing is guessed.
 */

import { el, name, short } from './dom.js';
import { jobLink, portLink, webLink } from './links.js';
import { momentHref } from './route.js';
import { ago, clock, moment, now, span } from './time.js';
import * as words from './words.js';

/** Arguments of hostile length are cut here, and the cut is said. */
const MOST_TEXT = 4000;
const MOST_LISTED = 100;

const present = (value) => value !== null && value !== undefined && value !== '';

/** Pairs of a name and what is known; without the unknown. */
function pairs(list) {
  const known = list.filter(([, value]) => present(value));
  return known.length === 0 ? null : el('dl', {}, known.map(([title, value]) =>
    el('div', {}, el('dt', { text: title }), el('dd', {}, value instanceof Node ? value : el('bdi', { class: 'long', text: short(value, MOST_TEXT) })))));
}

const part = (title, ...children) => el('section', {}, el('h3', { text: title }), ...children);

/** A process as it was seen. */
export function processFacts(p) {
  if (!p) return el('p', { class: 'quiet', text: 'The process is not known.' });
  const command = Array.isArray(p.cmdline) && p.cmdline.length > 0 ? el('code', { class: 'long', text: short(quoted(p.cmdline), MOST_TEXT) }) : null;
  const container = typeof p.container === 'object' && p.container !== null ? (p.container.name ?? p.container.id) : p.container;
  const ancestry = Array.isArray(p.ancestry) && p.ancestry.length > 0
    ? p.ancestry.map((a) => `${a.comm ?? 'not known'} (${a.pid ?? '?'})`).reverse().join(' → ') : null;
  const started = moment(p.start_time);
  return pairs([
    ['program', p.comm], ['pid', p.pid], ['user', present(p.user) && present(p.uid) ? `${p.user} (uid ${p.uid})` : (p.user ?? p.uid)],
    ['started', started === null ? null : `${clock(started)} (${ago(started)})`], ['command', command], ['executable', p.exe], ['directory', p.cwd],
    ['unit', p.unit], ['container', container], ['started by', ancestry],
  ]);
}

/** Arguments, those with spaces or nothing in quotes. */
function quoted(cmdline) {
  return cmdline.map((arg) => (/^[^\s'"\\$`]+$/.test(arg) ? arg : `'${String(arg).replaceAll("'", "'\\''")}'`)).join(' ');
}

export function jobFacts(job, test) {
  if (!job && !test) return null;
  return part('For', pairs([
    ['job', jobLink(job, 300)], ['system', job?.ci], ['run', job?.run], ['state', job ? words.jobState(job) : null],
    ['address', job?.url ? webLink(job.url) : null], ['test', words.test(test)],
  ]));
}

/** @returns {{title: string, body: Node[]}} */
export function holdFacts(entry, job) {
  const h = entry.data;
  const until = entry.until ?? now();
  const length = Number.isFinite(entry.from) ? `, for ${span(until - entry.from)}` : '';
  const held = `${clock(entry.from)} to ${entry.until === null ? 'now' : clock(entry.until)}${length}`;
  const place = words.netns(h);
  const body = [];
  if (entry.leaked !== null) {
    body.push(el('p', { class: 'warn' }, el('strong', { class: 'tag leak', text: 'leaked' }),
      ` It outlived its job; counted as leaked since ${clock(entry.leaked)} (${ago(entry.leaked)}).`));
  }
  body.push(part('Held', pairs([
    ['port', portLink(h)], ['address', words.endpoint(h)], ['namespace', place === 'host' ? 'host' : h.netns?.name && h.netns?.inode ? `${place} (${h.netns.inode})` : place],
    ['kind', words.kind(h)], ['held', held], ['ended', words.end(h)], ['came back', words.comeback(h)],
    ['on the timeline', Number.isFinite(entry.from) ? el('a', { href: momentHref(entry.from, h.port), text: 'what else happened on it then' }) : null],
  ])));
  if (h.nat) {
    body.push(part('Rule', pairs([['made by', h.nat.backend], ['chain', h.nat.chain],
      ['sends to', present(h.nat.to_address) ? words.endpoint({ address: h.nat.to_address, port: h.nat.to_port }) : null], ['comment', h.nat.comment]])));
  }
  if (h.kind !== 'nat_rule' || h.holder) body.push(part('Process', processFacts(h.holder)));
  body.push(jobFacts(job, h.test));
  if (entry.leaked !== null && entry.until === null && present(h.port)) {
    body.push(part('To let it go', el('p', {}, 'On the host, ', el('code', { text: `sniffer reap ${words.port(h)}` }), ' tells whom it would end; with ',
      el('code', { text: '--yes' }), ' it ends them.')));
  }
  return { title: `${words.port(h)} held by ${short(words.who(h), 80)}`, body: body.filter(Boolean) };
}

/** @returns {{title: string, body: Node[]}} */
export function conflictFacts(entry, job) {
  const c = entry.data;
  const times = c.attempts > 1 ? `${c.attempts} times, from ${clock(entry.from)} to ${clock(entry.until)}` : `once, at ${clock(entry.from)} (${ago(entry.from)})`;
  const blockers = c.blockers ?? [];
  const body = [
    el('p', { class: 'explain', text: short(c.explanation ?? 'The agent gave no explanation.', MOST_TEXT) }),
    part('Refused', pairs([
      ['port', portLink(c)], ['address', words.endpoint(c)], ['namespace', words.netns(c)], ['call', [c.call, c.errno].filter(present).join(', ')],
      ['tried', times], ['cause', words.cause(c)],
      ['on the timeline', Number.isFinite(entry.from) ? el('a', { href: momentHref(entry.from, c.port), text: 'what else happened on it then' }) : null],
    ])),
    el('h3', { class: 'side', text: 'Who was refused' }), processFacts(c.loser), jobFacts(job, c.loser?.test),
    el('h3', { class: 'side', text: blockers.length > 1 ? `Who had it (${blockers.length})` : 'Who had it' }),
    ...(blockers.length === 0 ? [el('p', { class: 'quiet', text: 'Nobody was seen to have it.' })] : blockers.slice(0, MOST_LISTED).flatMap(blockerFacts)),
  ];
  return { title: `${words.port(c)} refused to ${short(words.program(c.loser), 80)}`, body: body.filter(Boolean) };
}

function blockerFacts(claim) {
  const since = moment(claim.since);
  const owner = claim.owner?.type && claim.owner.type !== 'process' ? `${claim.owner.type} ${claim.owner.name ?? ''}` : null;
  return [
    pairs([['what', `${words.endpoint(claim)}, ${words.kind(claim)}`], ['owner', owner], ['since', since === null ? null : `${clock(since)} (${ago(since)})`],
      ['verdict', claim.verdict ? [claim.verdict, claim.reason].filter(present).join(': ') : null]]),
    ...(claim.holders ?? []).slice(0, MOST_LISTED).map(processFacts), jobFacts(claim.job, claim.test),
  ];
}

/**
 * Several that stand close together.
 * @param {any[]} entries
 * @param {(entry: any) => void} open
 */
export function manyFacts(entries, open) {
  const [first] = entries;
  const listed = entries.slice(0, MOST_LISTED).map((entry) => {
    const who = entry.what === 'hold' ? words.who(entry.data) : `refused to ${words.program(entry.data.loser)}`;
    const job = entry.what === 'hold' ? entry.data.job : entry.data.loser?.job;
    return el('li', {}, el('button', { type: 'button', class: 'open', on: { click: () => open(entry) } },
      `${clock(entry.from)} `, name(who, 60)), entry.leaked === null ? null : el('strong', { class: 'tag leak', text: 'leaked' }), job ? el('span', { class: 'quiet' }, ' ', name(words.job(job), 60)) : null);
  });
  const rest = entries.length - listed.length;
  const what = first.what === 'hold' ? words.many(entries.length, 'hold') : words.many(entries.length, 'conflict');
  return {
    title: `${what} on ${words.port(first.data)}`,
    body: [el('p', {}, `Between ${clock(first.from)} and ${clock(entries.at(-1).from)}. `, portLink(first.data, 'All of the port')),
      el('ol', { class: 'plain' }, listed), rest > 0 ? el('p', { class: 'quiet', text: `${rest} more: the port's page has them all.` }) : null].filter(Boolean),
  };
}
