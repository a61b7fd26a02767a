/**
 * Makes elements. Every text and attribute of the page goes through here, and control and bidi characters are made visible on the
 * way: names of processes, jobs and arguments are chosen by whoever runs a job on the host.
 * Never parses markup (no innerHTML, no insertAdjacentHTML), never sets a handler or a style by attribute.
 */

const SVG = 'http://www.w3.org/2000/svg';
/** Controls, formats (bidi, zero width, tags), lone surrogates, line and paragraph separators. */
const UNSEEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/u;
const UNSEEN_ALL = new RegExp(UNSEEN.source, 'gu');

/**
 * The same text, with what a reader could not see (or what would reorder the rest) as `\u{202e}`.
 * @param {unknown} value
 * @returns {string}
 */
export function visible(value) {
  const text = String(value);
  if (!UNSEEN.test(text)) return text;
  return text.replace(UNSEEN_ALL, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);
}

/** At most `length` characters. The cut is shown, and falls between code points. */
export function short(value, length) {
  const text = visible(value);
  if (text.length <= length) return text;
  const cut = text.slice(0, length - 1);
  return `${/[\ud800-\udbff]$/.test(cut) ? cut.slice(0, -1) : cut}…`;
}

/**
 * @param {Element} node
 * @param {Record<string, unknown>} props `text`, `on` (handlers by event name), `data` (data-*), otherwise attributes; null leaves out
 * @param {Array<Node|string|number|null|undefined|false>} children
 */
function fill(node, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === 'text') node.textContent = visible(value);
    else if (name === 'on') for (const [event, act] of Object.entries(value)) node.addEventListener(event, act);
    else if (name === 'data') for (const [key, datum] of Object.entries(value)) node.dataset[key] = visible(datum);
    else attribute(node, name, value === true ? '' : value);
  }
  append(node, ...children);
  return node;
}

/** Sets an attribute that is no handler and no style. */
export function attribute(node, name, value) {
  if (/^(on|style$|srcdoc$)/i.test(name)) throw new Error(`attribute ${name} is never set here`);
  node.setAttribute(name, name === 'href' ? value : visible(value));
}

/** @returns {HTMLElement} */
export function el(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** @returns {SVGElement} */
export function svg(tag, props = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

/** Appends nodes, and anything else as text. */
export function append(node, ...children) {
  for (const child of children.flat()) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(visible(child)));
  }
  return node;
}

/** Replaces the text of a node, and leaves it alone where it says that already. */
export function say(node, text) {
  const shown = visible(text);
  if (node.textContent !== shown) node.textContent = shown;
}

/** Text of strangers in its own direction, so that it reorders nothing around it. */
export function name(text, length = 120) {
  const shown = short(text, length);
  return el('bdi', { text: shown, title: shown.endsWith('…') ? short(text, 1000) : null });
}
