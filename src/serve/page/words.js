/**
 * What facts are called in plain words: ports, places, programs, jobs, ends, causes.
 * Takes values as the agent sends them, any of which may be null, and returns plain strings. Says "not known" and never invents.
 * Never touches the document, never makes text safe to show: dom.js does that for every text.
 */

import { ago, clock, moment, span } from './time.js';

const KINDS = { listener: 'listening', bound: 'bound, not listening', connection: 'connection', nat_rule: 'NAT rule' };
const CAUSES = {
  leaked_listener: 'leaked listener', concurrent_job: 'another job', same_job: 'same job', same_process: 'same process',
  outgoing_connection: 'outgoing connection', time_wait: 'TIME_WAIT', host_service: 'service of the host',
  container_publish: 'published container port', unknown: 'not known',
};
/** Numbers of signal(7) on every architecture that CI hosts have. */
const SIGNALS = { 1: 'HUP', 2: 'INT', 3: 'QUIT', 4: 'ILL', 6: 'ABRT', 7: 'BUS', 8: 'FPE', 9: 'KILL', 11: 'SEGV', 13: 'PIPE', 14: 'ALRM', 15: 'TERM' };
const ORDINALS = ['', 'first', 'second', 'third', 'fourth', 'fifth', 'sixth', 'seventh', 'eighth', 'ninth'];

export const plain = (word) => String(word).replaceAll('_', ' ');
export const kind = (hold) => KINDS[hold.kind] ?? plain(hold.kind ?? 'not known');
export const cause = (conflict) => CAUSES[conflict.cause] ?? plain(conflict.cause ?? 'not known');
export const many = (n, one, more = `${one}s`) => `${n.toLocaleString('en')} ${n === 1 ? one : more}`;

/** `8081/tcp`. */
export const port = (x) => `${x.port ?? '?'}/${x.protocol ?? '?'}`;

/** `0.0.0.0:8081`, `[::]:8081`. */
export function endpoint(x) {
  if (x.address === null || x.address === undefined) return `port ${x.port ?? 'not known'}`;
  return `${String(x.address).includes(':') ? `[${x.address}]` : x.address}:${x.port ?? '?'}`;
}

/** Network namespace: its name, else its number. */
export function netns(x) {
  if (!x.netns) return 'not known';
  return x.netns.name ?? `netns ${x.netns.inode ?? 'not known'}`;
}

/** The namespace where it is not the host's own, else ''. */
export const elsewhere = (x) => (x.netns && x.netns.name === 'host' ? '' : netns(x));

/** The program a person would name. */
export function program(process) {
  if (!process) return 'not known';
  return process.comm ?? process.exe ?? (process.pid ? `pid ${process.pid}` : 'not known');
}

/** Who holds: a program, or the rule that takes the port. */
export function who(hold) {
  if (hold.kind === 'nat_rule') return `${hold.nat?.backend ?? 'NAT'} rule${hold.nat?.chain ? ` ${hold.nat.chain}` : ''}`;
  return program(hold.holder);
}

/** `provider.test (pid 21)`. */
export function process(p) {
  if (!p) return 'a process that is not known';
  return p.pid && p.comm !== null ? `${program(p)} (pid ${p.pid})` : program(p);
}

/** Who had the port when a bind was refused: the owner a person would name, else the programs. */
export function blocker(claim) {
  if (claim.owner?.name && claim.owner.type && claim.owner.type !== 'process') return `${claim.owner.type} ${claim.owner.name}`;
  const names = (claim.holders ?? []).map(process);
  if (names.length > 0) return names.slice(0, 3).join(', ') + (names.length > 3 ? ` and ${names.length - 3} more` : '');
  return claim.owner?.name ?? kind(claim);
}

/** `coverage-test of envoyproxy/gateway`. */
export function job(j) {
  if (!j) return '';
  const title = j.name ?? j.id ?? 'not known';
  return j.repository ? `${title} of ${j.repository}` : title;
}

/** `running since 13:40:00 (2m ago)`, `ended at …`. */
export function jobState(j) {
  const [started, ended] = [moment(j.started), moment(j.ended)];
  if (j.state === 'ended') return ended === null ? 'ended' : `ended at ${clock(ended)} (${ago(ended)})`;
  if (j.state === 'running') return started === null ? 'running' : `running since ${clock(started)} (${ago(started)})`;
  return 'state not known';
}

export const test = (t) => (t ? [t.framework, t.name].filter((part) => part !== null && part !== undefined).join(' ') : '');

/** `killed by signal 9 (KILL)`, `exit status 1`. */
function status(exit) {
  if (exit?.signal !== null && exit?.signal !== undefined) {
    const known = SIGNALS[exit.signal];
    return `killed by signal ${exit.signal}${known ? ` (${known})` : ''}`;
  }
  return exit?.code !== null && exit?.code !== undefined ? `exit status ${exit.code}` : 'exit status not known';
}

/** How a hold ended; '' for one that goes on. */
export function end(hold) {
  if (hold.until === null || hold.until === undefined) return '';
  switch (hold.end) {
    case 'closed': return 'closed by its process';
    case 'exit': return `its process ended: ${status(hold.exit)}`;
    case 'oom_killed': return 'out of memory: its process was killed by the kernel';
    case 'netns_gone': return 'its network namespace went away';
    case 'agent_restart': return 'gone when the agent started again';
    case null: case undefined: case 'unknown': return 'how it ended is not known';
    default: return plain(hold.end);
  }
}

/** Whether it was lost rather than let go: a mark on the timeline, a word in the tables. */
export function wasLost(hold) {
  if (hold.end === 'oom_killed') return true;
  return hold.end === 'exit' && Boolean((hold.exit?.signal ?? 0) !== 0 || (hold.exit?.code ?? 0) !== 0);
}

/** `third time since 14:03:00`; a listener that came back after another process lost the port. */
export function comeback(hold) {
  const back = hold.comeback;
  if (!back) return '';
  const how = back.end === 'oom_killed' ? 'ran out of memory' : back.end === 'exit' ? 'exited' : `lost it (${plain(back.end ?? 'not known')})`;
  const gap = back.gap_ms === null || back.gap_ms === undefined ? '' : `${span(back.gap_ms)} `;
  const times = back.times ? `: ${ORDINALS[back.times] ?? `${back.times}th`} time since ${clock(moment(back.since))}` : '';
  return `came back ${gap}after another process ${how}${times}`;
}

/** What a bar says aloud. */
export function holdSentence(entry) {
  const h = entry.data;
  const until = entry.until === null ? 'until now' : `until ${clock(entry.until)}`;
  const parts = [`${port(h)} held by ${who(h)}`, h.job ? `job ${job(h.job)}` : 'no job', `from ${clock(entry.from)} ${until}`];
  if (entry.leaked !== null) parts.unshift('Leaked');
  if (end(h)) parts.push(end(h));
  return parts.join(', ');
}

/** What a conflict's mark says aloud. */
export function conflictSentence(entry) {
  const c = entry.data;
  const had = (c.blockers ?? []).map(blocker).slice(0, 2).join(' and ');
  const times = c.attempts > 1 ? `, ${c.attempts} attempts` : '';
  return `Conflict: ${process(c.loser)} was refused ${port(c)} at ${clock(entry.from)}${times}${had ? `, held by ${had}` : ''}, cause: ${cause(c)}`;
}
