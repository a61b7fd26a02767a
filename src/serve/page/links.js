/**
 * Links to jobs, ports and the outside. An address of a job becomes a link only if it is http or https: it is chosen by the job.
 * Never follows one by itself.
 */

import { jobClass } from './colour.js';
import { el, name, visible } from './dom.js';
import { jobHref, portHref } from './route.js';
import { jobKey } from './store.js';
import * as words from './words.js';

/** The job's name in its colour, linked to its report; null for no job. */
export function jobLink(job, length = 80) {
  if (!job) return null;
  const swatch = el('span', { class: `swatch ${jobClass(jobKey(job))}`, 'aria-hidden': 'true' });
  if (!job.ci || !job.id) return el('span', { class: 'job' }, swatch, name(words.job(job), length));
  return el('a', { class: 'job', href: jobHref(job), data: { ci: job.ci, job: job.id } }, swatch, name(words.job(job), length));
}

/** `8081/tcp`, linked to all that happened on the port. */
export function portLink(x, text = words.port(x)) {
  if (x.port === null || x.port === undefined) return el('span', { class: 'port', text });
  return el('a', { class: 'port', href: portHref(x.port), text });
}

/** A link where the address is one of the web, otherwise the text alone. */
export function webLink(address) {
  let url = null;
  try {
    url = new URL(address);
  } catch {
    // Not an address: shown as it is.
  }
  if (url === null || (url.protocol !== 'http:' && url.protocol !== 'https:')) return el('bdi', { class: 'long', text: address });
  return el('a', { class: 'long', href: url.href, rel: 'noreferrer noopener', target: '_blank', text: visible(url.href) });
}
