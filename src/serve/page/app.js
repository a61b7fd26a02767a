/**
 * The page: one view at a time by the address, one store of the present, one stream. Everything that changes what is shown comes through
 * here and is drawn once a frame, a few times a second at most, however many events there are.
 * Never draws by itself and never changes anything on the host: the agent is only asked.
 */

import { timeline } from './api.js';
import { Announcer } from './announce.js';
import { ConflictsView } from './conflicts.js';
import { Details } from './details.js';
import { el, say, short } from './dom.js';
import { JobView } from './job.js';
import { Live } from './live.js';
import { NowView } from './now.js';
import { PortView } from './port.js';
import { format, parse } from './route.js';
import { matcher } from './search.js';
import { Store } from './store.js';
import { zone } from './time.js';
import { TimelineView } from './timeline.js';
import { Windows } from './windows.js';

const VIEWS = { now: NowView, timeline: TimelineView, conflicts: ConflictsView, job: JobView, port: PortView };
const STATES = { live: 'live', reconnecting: 'reconnecting', silent: 'the agent does not answer', connecting: 'connecting' };
/** Between two draws that events ask for. */
const DRAW_MS = 250;
const PRUNE_MS = 60_000;

const at = (id) => document.getElementById(id);
const present = new Store();
const windows = new Windows(present);
const announcer = new Announcer(at('announce'));
const details = new Details(at('details'), (entry) => present.jobOf(entry));
let route = parse(location.hash);
let view = null;
let typed = '';
let match = null;
let arrived = 0;

/** What views may use. */
const ctx = {
  present, windows, details,
  match: () => match,
  query: () => route.query,
  dataAt: () => arrived,
  notices,
  /** Changes the address (null takes a key out) and shows it; a step that Back undoes. */
  go(change) {
    for (const [key, value] of Object.entries(change)) {
      if (value === null) route.query.delete(key);
      else route.query.set(key, value);
    }
    history.pushState(null, '', format(route));
    view.load?.();
    redraw();
  },
};

// Drawing

let frame = null;
let drawnAt = 0;

/** Draws in the next frame; for what a person did. */
function redraw() {
  frame ??= requestAnimationFrame(() => {
    frame = null;
    drawnAt = performance.now();
    view.show();
  });
}

let later = null;

/** Draws soon; for what events did. */
function redrawSoon() {
  later ??= setTimeout(() => {
    later = null;
    redraw();
  }, Math.max(0, drawnAt + DRAW_MS - performance.now()));
}

function openView() {
  view?.close();
  details.close();
  view = new VIEWS[route.view](ctx, route.args);
  if (route.view !== 'timeline' && route.view !== 'conflicts' && route.view !== 'port') windows.leave();
  at('view').replaceChildren(view.root);
  document.title = `${view.title} – sniffer on ${location.host}`;
  for (const link of document.querySelectorAll('nav a')) {
    if (link.dataset.view === route.view) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  scrollTo(0, 0);
  notices();
  if (view.load) view.load();
  view.show();
}

/** What the answer says it cannot say. */
function notices() {
  const store = view?.store ?? present;
  if (!store.loaded) return;
  const list = [];
  if (store.history && store.history.kept === false) list.push(`The agent keeps no history${store.history.why ? `: ${store.history.why}` : '.'}`);
  if (store.truncated) list.push('There was more in this time than the agent tells at once: some of it is not shown. Choose a shorter time.');
  list.push(...store.incomplete);
  at('notices').replaceChildren(...list.map((text) => el('li', { class: 'notice', text: short(text, 500) })));
  at('notices').hidden = list.length === 0;
}

// The filter and the address

function setFilter(text) {
  typed = text;
  match = matcher(text);
}

at('filter').addEventListener('input', (event) => {
  setFilter(event.target.value);
  if (typed === '') route.query.delete('q');
  else route.query.set('q', typed);
  history.replaceState(null, '', format(route));
  redraw();
});

function follow() {
  if (location.hash !== '' && !location.hash.startsWith('#/')) return;
  const next = parse(location.hash);
  const same = view !== null && next.view === route.view && next.args.join('\n') === route.args.join('\n');
  const moved = !same && view !== null;
  route = next;
  setFilter(route.query.get('q') ?? '');
  at('filter').value = typed;
  if (same) {
    view.load?.();
    redraw();
  } else openView();
  // A new view is a new page to who listens to it.
  if (moved) at('main').focus({ preventScroll: true });
}

addEventListener('hashchange', follow);
addEventListener('popstate', follow);
at('skip').addEventListener('click', (event) => {
  event.preventDefault(); // the address is the view's
  at('main').focus();
});

// The agent

function setState(state, why) {
  const node = at('connection');
  say(node, STATES[state]);
  node.dataset.state = state;
  if (why) node.title = short(why, 300);
  else node.removeAttribute('title');
}

const live = new Live({
  state: setState,
  async load() {
    const doc = await timeline();
    const known = present.loaded ? { holds: new Map(present.holds), conflicts: new Map(present.conflicts) } : null;
    performance.mark('data');
    arrived = performance.now();
    present.replace(doc);
    // What happened while the stream was away is news, too.
    if (known !== null) {
      for (const [kind, table] of [['holds', present.holds], ['conflicts', present.conflicts]]) {
        for (const [id, entry] of table) announcer.notice({ entry, before: known[kind].get(id) });
      }
    }
    await windows.reload();
    if (known === null && view.load) view.load();
    view.refresh?.();
    notices();
    redraw();
  },
  apply(kind, data) {
    const [put] = windows.apply(kind, data);
    if (put) {
      announcer.notice(put);
      details.update(put.entry);
    }
    view.concerns?.(kind, data);
    redrawSoon();
  },
});

say(at('host'), location.host);
say(at('zone'), zone());
new ResizeObserver(() => document.documentElement.style.setProperty('--head', `${at('head').offsetHeight}px`)).observe(at('head'));
setInterval(() => view.tick(), 1000);
setInterval(() => { windows.prune(); redrawSoon(); }, PRUNE_MS);
follow();
live.start();
