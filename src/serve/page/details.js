/**
 * The panel beside the views: opens with the facts of what was clicked, takes the focus, and gives it back on Escape or Close.
 * Follows what it shows: an event that changes the hold or the conflict changes the panel.
 * Never blocks the rest of the page.
 */

import { el, visible } from './dom.js';
import { conflictFacts, holdFacts, manyFacts } from './facts.js';

export class Details {
  /**
   * @param {HTMLElement} root
   * @param {(entry: any) => any} jobOf the newest that is known of an entry's job
   */
  constructor(root, jobOf) {
    this.root = root;
    this.jobOf = jobOf;
    this.entries = [];
    this.origin = null;
    this.fallback = null;
    document.addEventListener('keydown', (event) => {
      if (event.key === 'Escape' && !root.hidden && !event.defaultPrevented && event.target.id !== 'filter') this.close();
    });
  }

  /**
   * @param {any[]} entries one, or several that stand close together
   * @param {Element|null} from gets the focus back
   */
  open(entries, from) {
    this.entries = entries;
    if (from !== null) this.origin = { element: from, key: from.dataset?.key ?? null, id: from.closest?.('tr')?.dataset.key ?? null };
    this.#draw();
    document.body.classList.add('with-details');
    this.root.hidden = false;
    this.root.scrollTop = 0;
    this.title.focus({ preventScroll: true });
  }

  close() {
    if (this.root.hidden) return;
    const had = this.root.contains(document.activeElement) || document.activeElement === document.body;
    this.root.hidden = true;
    this.entries = [];
    document.body.classList.remove('with-details');
    if (had) this.#giveBack();
  }

  /** A new value of something: shown if it is what is open. */
  update(entry) {
    const at = this.entries.findIndex((one) => one.what === entry.what && one.id === entry.id);
    if (at < 0 || this.root.hidden || this.entries.length > 1) return;
    const focused = this.root.contains(document.activeElement);
    this.entries = [entry];
    this.#draw();
    if (focused) this.title.focus({ preventScroll: true });
  }

  #draw() {
    const [entry] = this.entries;
    const facts = this.entries.length > 1 ? manyFacts(this.entries, (one) => this.open([one], null))
      : entry.what === 'hold' ? holdFacts(entry, this.jobOf(entry)) : conflictFacts(entry, this.jobOf(entry));
    this.title = el('h2', { id: 'details-title', tabindex: '-1' }, el('bdi', { text: facts.title }));
    this.root.dataset.of = visible(`${entry.what} ${entry.id}`);
    this.root.replaceChildren(
      el('div', { class: 'details-head' }, this.title, el('button', { type: 'button', class: 'close', id: 'details-close', text: 'Close', on: { click: () => this.close() } })),
      ...facts.body);
  }

  /** Rows and bars may have been drawn anew since: then the one with the same key. */
  #giveBack() {
    if (!this.origin) return;
    const { element, key, id } = this.origin;
    const again = element.isConnected ? element
      : id !== null ? document.querySelector(`tr[data-key="${CSS.escape(id)}"] button.open`)
        : key !== null ? document.querySelector(`svg.lanes [data-key="${CSS.escape(key)}"]`) : null;
    (again ?? document.getElementById('main')).focus({ preventScroll: again !== null });
  }
}
