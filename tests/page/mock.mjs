/**
 * A stand-in for the agent, for work on the page without root: serves src/serve/page with the same security policy, and invented data
 * that changes slowly. Names in it are as hostile as a job can make them.
 * Usage: node tests/page/mock.mjs [--port 9817] [--holds 400] [--every 1500] [--no-history] [--truncated] [--quiet] [--empty]
 */

import { createServer } from 'node:http';
import { readFile } from 'node:fs/promises';
import { extname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const PAGE = fileURLToPath(new URL('../../src/serve/page/', import.meta.url));
const POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const TYPES = { '.html': 'text/html; charset=utf-8', '.js': 'text/javascript; charset=utf-8', '.css': 'text/css; charset=utf-8' };
const MINUTE = 60_000;

const has = (name) => process.argv.includes(`--${name}`);
const option = (name, otherwise) => Number(has(name) ? process.argv[process.argv.indexOf(`--${name}`) + 1] : otherwise);
const wanted = has('empty') ? 0 : option('holds', 400);

let seed = 7;
/** Numbers that are the same in every run. */
function random() {
  seed = (Math.imul(seed, 1103515245) + 12345) & 0x7fffffff;
  return seed / 0x7fffffff;
}
const pick = (list) => list[Math.floor(random() * list.length)];
const iso = (ms) => (ms === null ? null : new Date(ms).toISOString());

const PROGRAMS = ['provider.test', 'gateway.test', 'node', 'java', 'postgres', 'redis-server', 'python3', 'envoy', 'chrome', 'etcd', 'minio', 'api-server'];
const NAMES = ['unit', 'coverage-test', 'gateway-test', 'e2e', 'integration', 'conformance', 'lint', 'build-arm64'];
const REPOSITORIES = ['envoyproxy/gateway', 'acme/shop', 'acme/payments', 'kubernetes-sigs/kind', 'acme/search'];
const HOSTILE = ['<img src=x onerror=alert(1)>', 'exe.gnp\u202emoc', 'tab\there\nand \u001b[31mred', `long-${'x'.repeat(10_000)}`, '"><script>alert(2)</script>', '\u05d0\u05d1\u05d2 job'];

const started = Date.now();
const jobs = Array.from({ length: Math.max(6, Math.min(400, Math.floor(wanted / 8))) }, (_, i) => {
  const begin = started - Math.floor(random() * 70 * MINUTE);
  const over = random() < 0.6 ? Math.min(begin + Math.floor((4 + random() * 40) * MINUTE), started - MINUTE) : null;
  const repository = pick(REPOSITORIES);
  return {
    ci: pick(['github', 'github', 'gitlab', 'buildkite']), id: `job-${i}-${Math.floor(random() * 1e9).toString(16)}`, name: i < HOSTILE.length ? HOSTILE[i] : pick(NAMES), repository,
    run: String(9000 + i), url: i % 7 === 3 ? 'javascript:alert(3)' : `https://ci.example/${repository}/runs/${9000 + i}`, state: over === null ? 'running' : 'ended', started: iso(begin), ended: iso(over),
  };
});

let next = 1;
const holds = new Map();
const conflicts = new Map();

function holder(comm) {
  const pid = 1000 + Math.floor(random() * 60000);
  const hostile = random() < 0.02;
  return {
    pid, start_time: iso(started - 3600_000), ppid: 1, uid: 1001, user: 'runner', comm: hostile ? pick(HOSTILE).slice(0, 15) : comm, exe: `/home/runner/work/${comm}`,
    cmdline: hostile ? [comm, ...HOSTILE] : [`./${comm}`, '-test.run', 'TestProvider', '--name=with space', `tcp:0.0.0.0:${8000 + (pid % 1000)}`], cwd: '/home/runner/work/gateway',
    unit: 'actions.runner.service', container: random() < 0.1 ? '4f1c0e7ab2d9' : null, ancestry: [{ pid: 4100, comm: 'go' }, { pid: 4001, comm: 'Runner.Worker' }, { pid: 1, comm: 'systemd' }],
  };
}

function makeHold(from, until, port) {
  const comm = pick(PROGRAMS);
  const job = random() < 0.85 ? pick(jobs) : null;
  const leaked = until === null && job?.ended && random() < 0.5 ? Math.max(from, Date.parse(job.ended) + 30_000) : null;
  const kind = random() < 0.85 ? 'listener' : pick(['bound', 'connection', 'nat_rule']);
  const end = until === null ? null : pick(['closed', 'closed', 'exit', 'exit', 'oom_killed', 'netns_gone', 'unknown']);
  const inside = random() < 0.25;
  const hold = {
    id: next, from: iso(from), until: iso(until), kind, protocol: random() < 0.9 ? 'tcp' : 'udp', address: pick(['0.0.0.0', '127.0.0.1', '::']), port,
    netns: inside ? { inode: 4026532000 + (port % 5), name: port % 5 === 0 ? null : `ci-net-${port % 5}` } : { inode: 4026531833, name: 'host' },
    holder: kind === 'nat_rule' ? null : holder(comm), job, test: job && random() < 0.5 ? { framework: 'go', name: comm } : null,
    nat: kind === 'nat_rule' ? { backend: 'nftables', chain: 'DOCKER', to_address: '172.17.0.2', to_port: 80, comment: 'container web' } : null,
    leaked_at: iso(leaked), end, exit: end === 'exit' ? pick([{ code: 0, signal: null }, { code: 1, signal: null }, { code: null, signal: 9 }]) : null,
    comeback: random() < 0.03 ? { end: 'oom_killed', gap_ms: 4200, times: 3, since: iso(from - 20 * MINUTE) } : null, something_new: true,
  };
  next += 1;
  holds.set(hold.id, hold);
  return hold;
}

function makeConflict(at, victim) {
  const comm = pick(PROGRAMS);
  const loser = { ...holder(comm), job: pick(jobs), test: { framework: 'go', name: comm } };
  const blocker = { ...victim, holders: victim.holder ? [victim.holder] : [], owner: { type: 'process', name: victim.holder?.comm ?? 'rule' }, since: victim.from, state: 'LISTEN', verdict: victim.leaked_at ? 'leaked' : 'healthy', reason: null };
  const attempts = 1 + Math.floor(random() * 5);
  const conflict = {
    id: next, at: iso(at), last_at: iso(at + (attempts - 1) * 20_000), call: 'bind', protocol: victim.protocol, address: '0.0.0.0', port: victim.port, netns: victim.netns, errno: random() < 0.5 ? 'EADDRINUSE' : null,
    attempts, loser, blockers: [blocker], cause: victim.leaked_at ? 'leaked_listener' : 'concurrent_job',
    explanation: `${victim.port}/${victim.protocol} was taken: ${blocker.owner.name} has it. ${victim.port} is a fixed (hard-coded) port: somebody asked for it 4 times. Make it a variable, and let each test set it to 0, to a port of its own (sniffer run --ports 1), or to nothing where it needs no listener.`,
  };
  next += 1;
  conflicts.set(conflict.id, conflict);
  return conflict;
}

for (let i = 0; i < wanted; i += 1) {
  const from = started - Math.floor(random() * 62 * MINUTE);
  const open = random() < 0.35;
  // A few ports that every job wants, and a long tail.
  const port = random() < 0.3 ? pick([8080, 8081, 5432, 6379, 9090, 3000]) : 8000 + Math.floor(random() * Math.max(40, wanted * 0.8));
  makeHold(from, open ? null : Math.min(from + Math.floor((0.05 + random() * random() * 25) * MINUTE), started - 1000), port);
}
for (const hold of [...holds.values()]) {
  if (random() < Math.min(0.05, 60 / wanted)) makeConflict(Math.min(Date.parse(hold.from) + Math.floor(random() * 5 * MINUTE), started), hold);
}

// The stream

const clients = new Set();
function tell(event, data) {
  for (const client of clients) client.write(`event: ${event}\ndata: ${JSON.stringify(data)}\n\n`);
}
setInterval(() => { for (const client of clients) client.write(': still here\n\n'); }, 10_000);
if (!has('quiet')) {
  setInterval(() => {
    const now = Date.now();
    const open = [...holds.values()].filter((hold) => hold.until === null);
    const what = random();
    if (what < 0.45 || open.length === 0) tell('hold', makeHold(now, null, 8000 + Math.floor(random() * 300)));
    else if (what < 0.7) {
      const hold = pick(open);
      Object.assign(hold, { until: iso(now), end: 'exit', exit: { code: null, signal: 9 } });
      tell('hold', hold);
    } else if (what < 0.85) {
      const hold = pick(open.filter((one) => one.job)) ?? pick(open);
      if (hold.job && hold.job.state !== 'ended') {
        Object.assign(hold.job, { state: 'ended', ended: iso(now - 30_000) });
        tell('job', hold.job);
      }
      if (hold.job) hold.leaked_at ??= iso(now);
      tell('hold', hold);
    } else tell('conflict', makeConflict(now, pick(open)));
  }, option('every', 1500));
}

// The answers

const overlaps = (from, until, since, end) => Date.parse(from) <= end && (until === null || Date.parse(until) >= since);

function timeline(query) {
  const now = Date.now();
  const until = query.has('until') ? Date.parse(query.get('until')) : now;
  const since = query.has('since') ? Date.parse(query.get('since')) : until - 60 * MINUTE;
  if (Number.isNaN(since) || Number.isNaN(until)) return [400, { error: 'since and until must be RFC 3339 times' }];
  return [200, {
    schema: 1, as_of: iso(now), since: iso(since), until: iso(until), truncated: has('truncated'),
    incomplete: has('no-history') ? ['3 processes could not be read: permission denied'] : [], history: has('no-history') ? { kept: false, why: 'history.path is empty' } : { kept: true, why: null },
    holds: [...holds.values()].filter((hold) => overlaps(hold.from, hold.until, since, until)), conflicts: [...conflicts.values()].filter((c) => overlaps(c.at, c.last_at, since, until)), jobs,
  }];
}

function report(query) {
  const mine = (job) => job && job.ci === query.get('ci') && job.id === query.get('id');
  const job = jobs.find(mine) ?? null;
  const held = [...holds.values()].filter((hold) => mine(hold.job));
  const leaks = held.filter((hold) => hold.leaked_at !== null && hold.until === null);
  return [200, {
    schema: 1, as_of: iso(Date.now()), job, incomplete: [], holds: held, leaks, lost: held.filter((hold) => hold.end === 'oom_killed'),
    conflicts: [...conflicts.values()].filter((c) => mine(c.loser.job) || c.blockers.some((b) => mine(b.job))),
    summary: job ? [`It held ${held.length} ports.`, leaks.length > 0 ? `It left ${leaks.length} leaked listeners behind.` : 'It left nothing behind.'] : [],
  }];
}

const server = createServer(async (request, response) => {
  const url = new URL(request.url, 'http://mock');
  const head = { 'Content-Security-Policy': POLICY, 'X-Content-Type-Options': 'nosniff', 'Cache-Control': 'no-store' };
  const answer = ([status, doc]) => response.writeHead(status, { ...head, 'Content-Type': 'application/json' }).end(JSON.stringify(doc));
  if (url.pathname === '/v1/timeline') return answer(timeline(url.searchParams));
  if (url.pathname === '/v1/report' && url.searchParams.get('format') === 'html') return response.writeHead(200, { ...head, 'Content-Type': 'text/html' }).end('<!doctype html><title>evidence</title><p>evidence');
  if (url.pathname === '/v1/report') return answer(report(url.searchParams));
  if (url.pathname === '/healthz') return response.writeHead(200, head).end('ok\n');
  if (url.pathname === '/v1/stream') {
    response.writeHead(200, { ...head, 'Content-Type': 'text/event-stream' });
    response.write(': hello\n\n');
    clients.add(response);
    request.on('close', () => clients.delete(response));
    return undefined;
  }
  const file = url.pathname === '/' ? 'index.html' : url.pathname.match(/^\/page\/([a-z0-9_-]+\.(?:js|css))$/)?.[1];
  try {
    const body = await readFile(join(PAGE, file ?? 'none'));
    return response.writeHead(200, { ...head, 'Content-Type': TYPES[extname(file)] }).end(body);
  } catch {
    return answer([404, { error: `there is no ${url.pathname}` }]);
  }
});
server.listen(option('port', 9817), '127.0.0.1', () => console.log(`http://127.0.0.1:${server.address().port}/`));
