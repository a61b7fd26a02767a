/**
 * Draws one lane: its name, its bars and its marks, as SVG. Elements are kept by key and changed only where they differ, so that focus
 * survives and a lane that stays the same costs nothing. Colours are the style sheet's; geometry is set here.
 */

import { jobClass } from './colour.js';
import { attribute, el, short, svg, visible } from './dom.js';
import { MARK_PX, place } from './marks.js';
import { portHref } from './route.js';
import * as words from './words.js';

export const ROW_PX = 16;
const PAD_PX = 4;
/** Width of a character of the bars' small type, a little generous. */
const CHARACTER_PX = 6.3;

export const laneHeight = (lane) => lane.rows * ROW_PX + 2 * PAD_PX;

/** An empty lane. */
export function newLane(lane) {
  const label = svg('a', { class: 'lane-name', data: { key: 'name' }, tabindex: '-1' }, svg('text', { x: 8, y: PAD_PX + 12 }));
  if (lane.sample.port !== null && lane.sample.port !== undefined) attribute(label, 'href', portHref(lane.sample.port));
  const g = svg('g', { class: 'lane', role: 'group', data: { lane: lane.key } }, svg('path', { class: 'rule' }), label);
  return { g, label, items: new Map(), placed: [], drawn: '' };
}

/**
 * Brings a lane up to date.
 * @param {any} made of `newLane`
 * @param {import('./lanes.js').Lane} lane
 * @param {import('./marks.js').Scale} scale
 * @param {null|((entry: any) => boolean)} match entries that do not match are dimmed
 * @param {any} match_id says when `match` has changed
 */
export function drawLane(made, lane, scale, match, match_id) {
  const stamp = `${lane.version} ${scale.since} ${scale.until} ${scale.now} ${scale.width} ${match_id}`;
  if (made.drawn === stamp) return;
  made.drawn = stamp;
  drawName(made, lane, scale);
  made.placed = place(lane, scale);
  const wanted = new Set();
  for (const item of made.placed) {
    wanted.add(item.key);
    let one = made.items.get(item.key);
    if (!one) {
      one = { g: svg('g', { role: 'button', tabindex: '-1', 'aria-haspopup': 'dialog', data: { key: item.key } }), look: '' };
      made.items.set(item.key, one);
      // Marks stand above bars; among themselves their order does not matter.
      if (item.what === 'conflict') made.g.append(one.g);
      else made.g.insertBefore(one.g, made.label);
    }
    const dim = match !== null && !item.entries.some(match);
    const look = `${item.x} ${item.w} ${item.row} ${item.leak} ${dim} ${scale.left} ${item.entries.length}`;
    if (one.look === look && same(one.entries, item.entries)) continue;
    one.look = look;
    one.entries = item.entries;
    if (item.what === 'hold') drawBar(one.g, item, scale, dim);
    else drawMark(one.g, item, scale, dim);
  }
  for (const [key, { g }] of made.items) {
    if (wanted.has(key)) continue;
    g.remove();
    made.items.delete(key);
  }
}

const same = (a, b) => a.length === b.length && a.every((entry, i) => entry === b[i]);

function drawName(made, lane, scale) {
  const x = lane.sample;
  const place = words.elsewhere(x);
  const room = Math.floor((scale.left - 12) / 6.6);
  const port = words.port(x);
  const text = made.label.firstChild;
  const shown = place && room - port.length > 4 ? `${port} ${short(place, room - port.length - 1)}` : port;
  if (text.textContent !== shown) text.replaceChildren(port, svg('tspan', { class: 'quiet', dx: 5, text: shown.slice(port.length).trim() }));
  const whole = `port ${port}${place ? ` in network namespace ${place}` : ''}`;
  attribute(made.label, 'aria-label', `${whole}, all that happened on it`);
  const counts = [words.many(lane.holds.size, 'hold'), lane.conflicts.size > 0 ? words.many(lane.conflicts.size, 'conflict') : ''];
  attribute(made.g, 'aria-label', [whole, ...counts.filter(Boolean)].join(', '));
  attribute(made.g.firstChild, 'd', `M0 ${laneHeight(lane) - 0.5}H${scale.left + scale.width}`);
}

function drawBar(g, item, scale, dim) {
  const [first] = item.entries;
  const [x, y, w, h] = [scale.left + item.x, PAD_PX + item.row * ROW_PX + 1, item.w, ROW_PX - 2];
  const one = item.entries.length === 1;
  const hue = item.entries.every((entry) => entry.job === first.job) ? jobClass(first.job) : 'hm';
  const lost = words.wasLost(item.entries.at(-1).data) && item.entries.at(-1).until !== null;
  const open = item.entries.at(-1).until === null;
  g.setAttribute('class', ['bar', hue, one ? `k-${String(first.data.kind).replace(/\W/g, '')}` : 'cluster', item.leak === null ? '' : 'leaked', dim ? 'dim' : '', open ? 'open' : '']
    .filter(Boolean).join(' '));
  const box = (name, left, width) => svg('rect', { class: name, x: round(left), y, width: round(width), height: h, rx: width > 6 && name !== 'leak' ? 2 : 0 });
  const parts = [box('body', x, w)];
  if (w < 8) parts.push(box('hit', x + w / 2 - 4, 8));
  if (item.leak !== null) {
    const at = scale.left + item.leak;
    parts.push(box('leak', at, Math.max(2, x + w - at)), svg('path', { class: 'flag', d: `M${round(at)} ${y + h}V${y - 2}l7 3.5l-7 3.5` }));
  }
  if (lost) parts.push(svg('rect', { class: 'lost', x: round(x + w - 3), y: y - 1, width: 3, height: h + 2 }));
  const title = caption(item, w - (lost ? 6 : 0));
  if (title) parts.push(svg('text', { x: round(x + 5 + (item.leak !== null && item.leak < item.x + 8 ? 7 : 0)), y: y + 11, text: title }));
  g.replaceChildren(...parts);
  delete g.dataset.hold;
  delete g.dataset.cluster;
  delete g.dataset.leak;
  if (one) g.dataset.hold = String(first.id);
  else g.dataset.cluster = String(item.entries.length);
  if (item.leak !== null) g.dataset.leak = String(first.id);
  attribute(g, 'aria-label', one ? short(words.holdSentence(first), 400) : `${clusterWords(item)}, the first: ${short(words.holdSentence(first), 300)}`);
}

/** What a bar has room for. */
function caption(item, width) {
  const room = Math.floor((width - 10) / CHARACTER_PX);
  if (room < 3) return '';
  if (item.entries.length > 1) return short(`${item.entries.length} holds`, room);
  const [{ data, leaked }] = item.entries;
  const job = data.job ? visible(data.job.name ?? data.job.id ?? '') : '';
  const who = visible(words.who(data));
  const text = `${leaked === null ? '' : 'leaked: '}${who}${job && room > who.length + 6 ? `  ${job}` : ''}`;
  return short(text, room);
}

function clusterWords(item) {
  const leaks = item.entries.filter((entry) => entry.leaked !== null).length;
  return `${words.many(item.entries.length, 'hold')} close together${leaks > 0 ? `, ${leaks} leaked` : ''}`;
}

function drawMark(g, item, scale, dim) {
  const [first] = item.entries;
  const [x, y, r] = [scale.left + item.x, PAD_PX + ROW_PX / 2, MARK_PX / 2 - 1];
  g.setAttribute('class', `mark${dim ? ' dim' : ''}`);
  const parts = [svg('rect', { class: 'hit', x: round(x - 8), y: y - 8, width: 16, height: 16 })];
  if (item.w > MARK_PX) parts.push(svg('path', { class: 'tail', d: `M${round(x)} ${y}H${round(x + item.w)}` }));
  parts.push(svg('circle', { class: 'halo', cx: round(x), cy: y, r: r + 3 }),
    svg('path', { class: 'cross', d: `M${round(x - r)} ${y - r}l${2 * r} ${2 * r}M${round(x + r)} ${y - r}l${-2 * r} ${2 * r}` }));
  if (item.entries.length > 1) parts.push(svg('text', { class: 'count', x: round(x + r + 4), y: y + 4, text: item.entries.length }));
  g.replaceChildren(...parts);
  g.dataset.conflict = String(first.id);
  const more = item.entries.length > 1 ? `${words.many(item.entries.length, 'conflict')} close together, the first: ` : '';
  attribute(g, 'aria-label', more + short(words.conflictSentence(first), 400));
}

const round = (n) => Math.round(n * 10) / 10;

/** What the shapes mean. */
export function legend() {
  const sample = (name, words_, ...parts) => el('li', {}, svg('svg', { width: 30, height: 14, class: name, 'aria-hidden': 'true' }, parts), words_);
  const bar = (cls, extra = []) => svg('g', { class: `bar ${cls}` }, svg('rect', { class: 'body', x: 1, y: 1, width: 28, height: 12, rx: 2 }), extra);
  return el('ul', { class: 'legend', 'aria-label': 'What the shapes mean' },
    sample('', 'held for a job (its colour)', bar('h8')), sample('', 'held, no job', bar('hn')),
    sample('', 'leaked from the flag on', bar('h8 leaked', [svg('rect', { class: 'leak', x: 10, y: 1, width: 19, height: 12 }), svg('path', { class: 'flag', d: 'M10 13V0l7 3.5l-7 3.5' })])),
    sample('', 'bind refused', svg('g', { class: 'mark' }, svg('path', { class: 'cross', d: 'M10 2l10 10M20 2l-10 10' }))),
    sample('', 'killed or failed', bar('hn', [svg('rect', { class: 'lost', x: 26, y: 0, width: 3, height: 14 })])),
    sample('', 'not a listener', bar('hn k-connection')), sample('', 'several, close together', bar('hm cluster')));
}
