/**
 * Drives a real browser for tests: one JSON command a line on standard input, one JSON line of answer each on standard output
 * (`{"ok": …}` or `{"error": "…"}`). Ends with its input, or after two minutes without a command.
 * Needs Chromium (`CHROMIUM`, else /usr/bin/chromium) and the package playwright-core (`PLAYWRIGHT_CORE`: its directory).
 * Never reaches for anything but the address it is told to open.
 */

import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';

const IDLE_MS = 120_000;
const PATIENCE_MS = 10_000;
const ARGUMENTS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'];

/** The entry that the package itself names. */
async function chromiumType() {
  const directory = process.env.PLAYWRIGHT_CORE;
  if (!directory) throw new Error('PLAYWRIGHT_CORE is not set: the directory of the package playwright-core');
  const manifest = JSON.parse(await readFile(join(directory, 'package.json'), 'utf8'));
  const entry = manifest.exports?.['.']?.import ?? manifest.main ?? 'index.js';
  const module = await import(pathToFileURL(join(directory, entry)).href);
  return module.chromium ?? module.default.chromium;
}

let browser = null;
let page = null;
let problems = [];
const profile = await mkdtemp(join(tmpdir(), 'sniffer-page-'));

async function open({ url, width = 1280, height = 800, dark = false }) {
  if (browser === null) {
    const type = await chromiumType();
    browser = await type.launchPersistentContext(profile, { executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', headless: true, args: ARGUMENTS, timeout: 60_000 });
  }
  await page?.close();
  page = await browser.newPage();
  problems = [];
  const seen = problems;
  page.on('console', (message) => { if (['error', 'warning'].includes(message.type())) seen.push(`console: ${message.text()}`); });
  page.on('pageerror', (error) => seen.push(`page: ${error.message}`));
  page.on('requestfailed', (request) => seen.push(`request: ${request.url()} ${request.failure()?.errorText}`));
  page.on('response', (response) => { if (response.status() >= 400) seen.push(`status: ${response.status()} ${response.url()}`); });
  page.on('dialog', (dialog) => { seen.push(`dialog: ${dialog.message()}`); dialog.dismiss(); });
  await page.exposeFunction('tellDriver', (text) => { seen.push(text); });
  await page.addInitScript(() => {
    addEventListener('securitypolicyviolation', (event) => window.tellDriver(`policy: ${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`));
  });
  await page.setViewportSize({ width, height });
  await page.emulateMedia({ colorScheme: dark ? 'dark' : 'light' });
  await page.goto(url, { waitUntil: 'domcontentloaded', timeout: 30_000 });
  return page.url();
}

/** Longest and 95th percentile time between frames, while the page is scrolled and the filter typed into. */
async function frames({ ms = 3000 }) {
  const sampled = page.evaluate((length) => new Promise((done) => {
    const times = [];
    const begun = performance.now();
    let last = begun;
    let way = 1;
    const step = (now) => {
      times.push(now - last);
      last = now;
      scrollBy(0, 120 * way);
      if (scrollY <= 0) way = 1;
      else if (scrollY + innerHeight >= document.documentElement.scrollHeight - 2) way = -1;
      if (now - begun < length) requestAnimationFrame(step);
      else done(times.slice(1).sort((a, b) => a - b));
    };
    requestAnimationFrame(step);
  }), ms);
  // Each key is a rest of its own, as with a person who types.
  const until = Date.now() + ms - 300;
  await page.focus('#filter', { timeout: PATIENCE_MS });
  for (let i = 0; Date.now() < until; i += 1) {
    await page.keyboard.press(i % 8 < 4 ? '8081'[i % 4] : 'Backspace');
    await new Promise((rest) => { setTimeout(rest, 120); });
  }
  const times = await sampled;
  await page.fill('#filter', '');
  const round = (n) => Math.round(n * 10) / 10;
  return { frames: times.length, longest: round(times.at(-1) ?? 0), p95: round(times[Math.floor(times.length * 0.95)] ?? 0) };
}

const DO = {
  open,
  frames,
  wait_text: async ({ text, within_ms = PATIENCE_MS }) => {
    await page.waitForFunction((wanted) => document.body.innerText.includes(wanted), text, { timeout: within_ms, polling: 50 });
    return true;
  },
  wait_selector: async ({ selector, within_ms = PATIENCE_MS }) => {
    await page.waitForSelector(selector, { timeout: within_ms, state: 'attached' });
    return true;
  },
  text: ({ selector }) => page.locator(selector).first().innerText({ timeout: PATIENCE_MS }),
  count: ({ selector }) => page.locator(selector).count(),
  click: async ({ selector }) => { await page.locator(selector).first().click({ timeout: PATIENCE_MS }); return true; },
  click_text: async ({ text }) => { await page.getByText(text).first().click({ timeout: PATIENCE_MS }); return true; },
  type: async ({ selector, text }) => { await page.locator(selector).first().fill(text, { timeout: PATIENCE_MS }); return true; },
  press: async ({ key }) => { await page.keyboard.press(key); return true; },
  eval: async ({ expression }) => (await page.evaluate(expression)) ?? null,
  measures: () => page.evaluate(() => Object.fromEntries(performance.getEntriesByType('measure').map((m) => [m.name, Math.round(m.duration * 10) / 10]))),
  problems: () => problems,
  screenshot: async ({ path }) => { await page.screenshot({ path }); return path; },
  overflow: () => page.evaluate(() => document.documentElement.scrollWidth > document.documentElement.clientWidth),
  accessible: ({ selector = 'a, button, input, select, textarea, [role=button], [tabindex="0"]' }) => page.evaluate((wanted) => [...document.querySelectorAll(wanted)]
    .filter((node) => node.checkVisibility() && !nameOf(node)).map((node) => node.outerHTML.slice(0, 160)), selector),
};

/** Runs in the page: where an accessible name can come from. */
const NAME_OF = `window.nameOf = (node) => {
  const by = (node.getAttribute('aria-labelledby') ?? '').split(/\\s+/).map((id) => document.getElementById(id)?.textContent ?? '').join('');
  return (node.getAttribute('aria-label') || by || [...(node.labels ?? [])].map((l) => l.textContent).join('') || node.textContent || node.getAttribute('title') || '').trim();
};`;

async function run(command) {
  const act = DO[command.do];
  if (!Object.hasOwn(DO, command.do)) throw new Error(`there is no command ${command.do}`);
  if (command.do !== 'open' && page === null) throw new Error('nothing is open');
  if (command.do === 'accessible') await page.evaluate(NAME_OF);
  return act(command);
}

async function end() {
  await browser?.close().catch(() => {});
  await rm(profile, { recursive: true, force: true, maxRetries: 5, retryDelay: 100 });
  process.exit(0);
}

let idle = setTimeout(end, IDLE_MS);
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, end);
for await (const line of createInterface({ input: process.stdin })) {
  if (line.trim() === '') continue;
  clearTimeout(idle);
  let answer = null;
  try {
    answer = { ok: await run(JSON.parse(line)) };
  } catch (error) {
    answer = { error: String(error?.message ?? error).split('\n').slice(0, 3).join(' ') };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
  idle = setTimeout(end, IDLE_MS);
}
await end();
