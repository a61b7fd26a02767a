/**
 * Sorts rows by a column, with a rank (leaks first) before it. Keys are made once a row, not once a comparison: tables have thousands.
 * Never changes the rows it was given.
 */

/**
 * @param {any[]} rows in the order they have without a column
 * @param {null|{column: {order: (row: any) => string|number}, down: boolean}} by
 * @param {((row: any) => number)|undefined} rank low ones first, whatever the column says
 */
export function sorted(rows, by, rank) {
  if (by === null && !rank) return rows;
  const keyed = rows.map((row, i) => ({ row, i, rank: rank ? rank(row) : 0, key: by ? by.column.order(row) : 0 }));
  const way = by?.down ? -1 : 1;
  keyed.sort((a, b) => a.rank - b.rank || way * compare(a.key, b.key) || a.i - b.i);
  return keyed.map(({ row }) => row);
}

function compare(a, b) {
  // What is not there ('' or no number) comes last.
  if (a === b) return 0;
  if (a === '') return 1;
  if (b === '') return -1;
  return a < b ? -1 : 1;
}
