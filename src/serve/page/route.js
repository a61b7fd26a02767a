/**
 * Addresses of the page: `#/timeline?range=6h&at=…&q=8081`, `#/job/<ci>/<id>`, `#/port/8081`. A link to what one sees can be handed on.
 * Parses and writes them; never loads anything.
 */

/**
 * @typedef {object} Route
 * @property {'now'|'timeline'|'conflicts'|'job'|'port'} view
 * @property {string[]} args
 * @property {URLSearchParams} query
 */

const VIEWS = { now: 0, timeline: 0, conflicts: 0, job: 2, port: 1 };

/** @returns {Route} */
export function parse(hash) {
  const [path, query = ''] = hash.replace(/^#\/?/, '').split(/\?(.*)/s);
  const [view, ...rest] = path.split('/');
  const args = rest.map(decode);
  const known = Object.hasOwn(VIEWS, view) && args.length === VIEWS[view] && args.every((arg) => arg !== '');
  return { view: known ? view : 'now', args: known ? args : [], query: new URLSearchParams(query) };
}

/** @returns {string} */
export function format({ view, args, query }) {
  const path = [view, ...args.map(encodeURIComponent)].join('/');
  const search = query.toString();
  return `#/${path}${search === '' ? '' : `?${search}`}`;
}

export const jobHref = (job) => `#/job/${encodeURIComponent(job.ci ?? '')}/${encodeURIComponent(job.id ?? '')}`;
export const portHref = (port) => `#/port/${encodeURIComponent(String(port))}`;

/** The timeline around a moment, on one port. */
export function momentHref(at, port) {
  const query = new URLSearchParams({ range: '15m', at: new Date(at).toISOString(), q: `:${port}` });
  return `#/timeline?${query}`;
}

/** A broken escape in a hand-written address is itself. */
function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}
