/**
 * A colour for a job that is the same on every page and every day: one of the hues of style.css, by a hash of system and id.
 * Reds are left out of the scale: red means leaked. Never the only way to tell: names stand beside it.
 */

const HUES = 18;

/** @returns {string} class name */
export function jobClass(key) {
  if (key === null) return 'hn';
  let hash = 0x811c9dc5; // FNV-1a
  for (let i = 0; i < key.length; i += 1) hash = Math.imul(hash ^ key.charCodeAt(i), 0x01000193) >>> 0;
  // Ids of one system often differ in their last digits only, which the low bits alone would not spread.
  return `h${((hash ^ (hash >>> 15)) >>> 0) % HUES}`;
}
