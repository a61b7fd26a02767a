/**
 * Says new leaks and conflicts in one line that screen readers read out (aria-live), at most one every few seconds: the newest, and how
 * many more there were. Never says what was already there when the page was opened.
 */

import { say, short } from './dom.js';
import { clock } from './time.js';
import * as words from './words.js';

/** Long enough to hear a sentence to its end. */
const REST_MS = 5_000;

export class Announcer {
  /** @param {HTMLElement} root */
  constructor(root) {
    this.root = root;
    this.waiting = [];
    this.timer = null;
  }

  /** Compares what an event brought with what was known before. */
  notice({ entry, before }) {
    if (entry.what === 'conflict' && !before) this.#add(`${clock(entry.from)} ${words.conflictSentence(entry)}`);
    else if (entry.what === 'hold' && entry.leaked !== null && (before?.leaked ?? null) === null) {
      this.#add(`${clock(entry.leaked)} Leaked: ${words.port(entry.data)} held by ${words.process(entry.data.holder)}${entry.data.job ? `, job ${words.job(entry.data.job)}` : ''}`);
    }
  }

  #add(text) {
    this.waiting.push(text);
    if (this.timer === null) this.#speak();
  }

  #speak() {
    const newest = this.waiting.at(-1);
    const more = this.waiting.length - 1;
    this.waiting = [];
    say(this.root, `${short(newest, 240)}${more > 0 ? ` (and ${more} more)` : ''}`);
    this.timer = setTimeout(() => {
      this.timer = null;
      if (this.waiting.length > 0) this.#speak();
    }, REST_MS);
  }
}
